"""Attention behind every stage and in the neck of MMDetection's own detectors, one config of a family.

With ``-s`` a row of a table is printed for each, as docs/insertion.md has it.
"""

import copy
from typing import Any

import pytest
import torch
from insertion_zoo import CONFIGS, SIDES, TWO_IMAGES, places_of
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from zoo_detectors import ROOT, Reference, batch, maps, parts, randomise, settle, single_detector

from sa_mmdet.insertion.configs import changes, merged

ATTENTION = {
    "SA": dict(type="ShuffleAttention", groups="auto"),
    "SE": dict(type="SqueezeExcitation", ratio="auto"),
    "ECA": dict(type="EfficientChannelAttention"),
    "SGE": dict(type="SpatialGroupEnhance", groups="auto"),
    "CBAM": dict(type="CBAM", ratio="auto"),
}
TOLERANCE = 1e-5


def built(cfg: Any) -> Any:
    return MODELS.build(ConfigDict(copy.deepcopy(cfg)))


def attention_of(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.named_parameters() if ".inserted_" in name and value.requires_grad}


def small(cfg: Any) -> Any:
    """A config for random weights: all stages train, low scores and large anchors count, with few proposals."""
    limits = dict(nms_pre=100, max_per_img=20)
    for part in parts(cfg):
        part.pop("frozen_stages", None)
        part.update({key: value for key, value in dict(score_thr=0.0, allowed_border=-1).items() if key in part})
        part.update(dict(num=4096) if part.get("type") == "RandomSampler" else {})
        part.update(dict(neg_pos_ratio=10_000) if "neg_pos_ratio" in part else {})  # SSD's, so that all levels train
        if "nms" in part:
            part.update({key: min(part[key], limit) for key, limit in limits.items() if isinstance(part.get(key), int)})
    return cfg


def train(model: Any, data: dict[str, Any], steps: int = 2) -> None:
    """Training steps of the attention by Adam, whose steps are as long for small gradients as for large ones."""
    weights = list(attention_of(model).values())
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    model.train()
    optimizer = torch.optim.Adam(weights, lr=1e-4, eps=1e-30)
    for _ in range(steps):
        loss, _ = model.parse_losses(model.loss(data["inputs"], copy.deepcopy(data["data_samples"])))
        assert loss.isfinite()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.long
@pytest.mark.parametrize("config", CONFIGS)
def test_attention_anywhere(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT.parent)  # from where some configs name their teacher's
    register_all_modules(init_default_scope=True)
    cfg = small(single_detector(config))
    torch.manual_seed(0)
    plain = built(cfg)
    plain.init_weights()
    randomise(plain.backbone)
    images, side = 1 + (config in TWO_IMAGES), SIDES.get(config, 128)
    data = batch(plain, cfg, images, side, side)
    if not all(level.isfinite().all() for level in maps(plain, data)):
        settle(plain, data)
    if any(level.shape[-1] == 1 for level in maps(plain, data)):  # attention within a map does not train there
        data = batch(plain, cfg, images, side, 2 * side)
    reference = Reference(plain, data)
    cells, layers = [], 0
    for name, layer in ATTENTION.items():
        model = built(merged(cfg, changes(cfg, dict.fromkeys(places_of(cfg), layer), {})))
        fresh = copy.deepcopy(model)
        model.load_state_dict(plain.state_dict(), strict=True)
        difference, compared = reference.difference(model)
        assert difference <= TOLERANCE, name
        before = {key: value.detach().clone() for key, value in attention_of(model).items()}
        assert before, name
        train(model, data)
        still = [key for key, value in attention_of(model).items() if torch.equal(value, before[key])]
        assert not still, (name, still)
        fresh.load_state_dict(model.state_dict(), strict=True)
        assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.state_dict().items())
        layers = len({key.split(".inserted_")[0] for key in before})
        cells.append(f"{difference:.0e}{'' if compared == 'predictions' else f' ({compared})'}")
    places = ", ".join(f"`{place}`" for place in places_of(cfg))
    print(f"\n| {config} | {type(plain.backbone).__name__} | {places} | {layers} | {' | '.join(cells)} |")
