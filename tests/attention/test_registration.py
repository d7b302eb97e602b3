"""A new attention layer is one class, from which complexity, converters, tables and the exact start read all."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from places import CONFIGS, REPOSITORY
from torch import Tensor, nn

from sa_mmdet.analysis import analyze
from sa_mmdet.attention import Attention, ExactStart, LayerShapes, label_of
from sa_mmdet.backbones import attention_label
from sa_mmdet.checkpoints import convert_tensors, known_attention, released
from sa_mmdet.evaluation.runs import Run
from sa_mmdet.evaluation.tables import run_tables


class MadeUpAttention(Attention):
    """x * sigmoid(a 1 x 1 convolution of x), with some channels in between."""

    _abbr_ = "made"
    label = "MadeUp"
    foreign_names = {"their_gate.": "conv."}
    pooled = 3
    uncounted = (nn.Conv2d,)
    biases_in_detectors = False

    def __init__(self, in_channels: int, ratio: int = 4):
        super().__init__()
        self.in_channels = in_channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, in_channels // ratio, 1), nn.Conv2d(in_channels // ratio, in_channels, 1)
        )

    @classmethod
    def options_of(cls, shapes: LayerShapes) -> dict[str, Any]:
        return dict(ratio=shapes.ratio("conv.0.weight"))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x).sigmoid()


class MadeUpWithStart(ExactStart, MadeUpAttention):
    _abbr_ = "begin"

    def start_exactly(self) -> tuple[Tensor, float]:
        for parameter in self.conv[1].parameters():
            nn.init.zeros_(parameter)
        return torch.arange(self.in_channels), 0.5


class MadeUpAfterStages(MadeUpAttention):
    _abbr_ = "after"
    label = "After"
    after_stages = True


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    kinds = (MadeUpAttention, MadeUpWithStart, MadeUpAfterStages)
    for kind in kinds:
        ROOT.register_module(module=kind)
    yield
    for kind in kinds:
        del ROOT.module_dict[kind.__name__]


def backbone(**layer: Any) -> dict[str, Any]:
    return dict(type="AttentionResNet", depth=18, attention=dict(type="MadeUpAttention", **layer))


def test_complexity_counts_it_as_attention() -> None:
    plain = analyze(dict(type="ResNet", depth=18), convention="paper")
    found = analyze(backbone(), convention="paper")
    added = sum(2 * (2 * c * c // 4 + c + c // 4) for c in (64, 128, 256, 512))  # two blocks per stage
    assert found.attention_parameters == found.parameters - plain.parameters == added
    assert found.attention == 3 * sum(2 * c * (56 * 64 // c) ** 2 for c in (64, 128, 256, 512))
    assert found.backbone == plain.backbone
    assert analyze(backbone()).attention > 0


def test_two_stage_detectors_do_not_count_its_biases() -> None:
    cfg = Config.fromfile(CONFIGS / "faster_rcnn" / "faster-rcnn_r50_fpn_1x_coco.py").model
    cfg.backbone = {**cfg.backbone, **backbone(), "depth": 50}
    weights = sum(blocks * 2 * c * c // 4 for blocks, c in zip((3, 4, 6, 3), (256, 512, 1024, 2048), strict=True))
    assert analyze(cfg, convention="paper").attention_parameters == weights


@pytest.mark.parametrize("naming", ["here", "released", "foreign"])
def test_converters_recognise_its_weights(naming: str) -> None:
    cfg = backbone(ratio=8)
    state: dict[str, Tensor] = MODELS.build(cfg).state_dict()
    names = {key: key.replace("made.conv.", "their_gate.") if naming == "foreign" else key for key in state}
    tensors = {names[key]: value for key, value in state.items()}
    converted = convert_tensors(released(tensors)["state_dict"] if naming == "released" else tensors, "file.pth")
    assert converted.attention == "made"
    assert "made" in known_attention()
    assert converted.backbone == cfg
    assert all(torch.equal(value, state[key]) for key, value in converted.state.items())
    del tensors[names["layer1.0.made.conv.0.weight"]]
    with pytest.raises(ValueError, match=r"^file\.pth: layer1\.0\.made\.conv\.0\.weight is missing$"):
        convert_tensors(tensors, "file.pth")


def test_converters_recognise_it_after_stages() -> None:
    cfg = dict(type="AttentionResNet", depth=18, stage_attention=dict(type="MadeUpAfterStages", ratio=8))
    state: dict[str, Tensor] = MODELS.build(cfg).state_dict()
    theirs = released(state)["state_dict"]
    assert {"module.after1.conv.0.weight", "module.after3.conv.0.weight"} < set(theirs)
    converted = convert_tensors(theirs, "file.pth")
    assert (converted.attention, converted.backbone) == ("after", cfg)
    assert set(converted.state) == set(state)


def test_tables_print_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config.fromfile(CONFIGS / "retinanet" / "retinanet_r50_fpn_1x_coco.py")
    cfg.model.backbone = {**cfg.model.backbone, **backbone(), "depth": 50}
    run = Run("mine", Path("work_dirs/mine"), cfg, [], [(1, {"coco/bbox_mAP": 0.5})], {})
    [table] = run_tables([run])
    assert dict(zip(table["header"], table["rows"][0], strict=True))["variant"] == "MadeUp"
    tool = runpy.run_path(str(REPOSITORY / "tools" / "misc" / "make_tables.py"))
    assert tool["ATTENTION"]["made"] == "MadeUp"


@pytest.mark.parametrize(
    ("cfg", "label"),
    [
        (dict(type="ResNet", depth=50), "none"),
        (dict(type="mmdet.SAResNet", depth=50), "SA"),
        (dict(type="AttentionResNet", attention=[None, dict(type="CBAM"), None, dict(type="CBAM")]), "CBAM"),
        (dict(type="AttentionResNet", stage_attention=dict(type="BAM")), "BAM"),
        (dict(type="SAResNet", stage_attention=dict(type="MadeUpAfterStages")), "SA+After"),
        (dict(type="ResNet", plugins=[dict(cfg=dict(type="ContextBlock", ratio=1 / 16))]), "ContextBlock"),
        (dict(type="ResNeXt", plugins=[dict(cfg=dict(type="CBAM"))]), "ResNeXt+CBAM"),
        (dict(type="SwinTransformer"), "SwinTransformer"),
    ],
    ids=str,
)
def test_the_label_of_a_backbone(cfg: dict[str, Any], label: str) -> None:
    assert attention_label(cfg) == label


def test_the_label_of_a_class() -> None:
    assert label_of(MadeUpAttention) == label_of("mmdet.MadeUpAttention") == "MadeUp"
    assert label_of("Unheard") == "Unheard"


@pytest.mark.parametrize("kind", ["MadeUpAttention", "MadeUpWithStart", "BAM", "BakedShuffleAttention"])
def test_the_exact_start(kind: str, tmp_path: Path) -> None:
    plain: Any = ResNet(18)
    plain.init_weights()
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    init_cfg = dict(type="ResNetPretrained", checkpoint=str(tmp_path / "plain.pth"))
    model: Any = MODELS.build(dict(type="AttentionResNet", depth=18, attention=dict(type=kind), init_cfg=init_cfg))
    if kind != "MadeUpWithStart":
        with pytest.raises(ValueError, match=rf"after layer1\.0\.conv2 {kind} cannot start as a plain network"):
            model.init_weights()
        return
    model.init_weights()
    for network in (model, plain):
        network.eval()
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_bam_and_the_baked_form_count_as_attention() -> None:
    plain = analyze(dict(type="ResNet", depth=50))
    bam = analyze(dict(type="AttentionResNet", depth=50, stage_attention=dict(type="BAM")))
    assert bam.attention_parameters == bam.parameters - plain.parameters > 0
    assert bam.backbone == plain.backbone
    baked = analyze(dict(type="BakedSAResNet", depth=50))
    assert baked.attention_parameters == 3 * sum(
        blocks * c for blocks, c in zip((3, 4, 6, 3), (256, 512, 1024, 2048), strict=True)
    )
