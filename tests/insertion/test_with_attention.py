"""Attention inserted into backbones, necks and heads: the function, the weights, the training."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import as_if_trained, outputs
from mmdet.models import SwinTransformer
from mmdet.registry import MODELS
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from sa_mmdet.insertion import insert, inserted

LAYERS: dict[str, dict[str, Any]] = {
    "SA": dict(type="ShuffleAttention", groups="auto"),
    "SE": dict(type="SqueezeExcitation", ratio=4),
    "ECA": dict(type="EfficientChannelAttention"),
    "SGE": dict(type="SpatialGroupEnhance", groups="auto"),
    "CBAM": dict(type="CBAM", ratio="auto"),
    "GC": dict(type="ContextBlock", ratio=1 / 4),
}
SMALL_SWIN = dict(type="SwinTransformer", embed_dims=32, depths=(1, 2, 2, 1), num_heads=(1, 2, 4, 8), window_size=4)
# For each network its config, its places, and how many modules these name.
NETWORKS: dict[str, tuple[dict[str, Any], str, int]] = {
    "ResNet": (dict(type="ResNet", depth=18, base_channels=16), "layer*", 4),
    "CSPNeXt": (dict(type="CSPNeXt", deepen_factor=0.33, widen_factor=0.125), "stage*", 4),
    "MobileNetV2": (dict(type="MobileNetV2", out_indices=(1, 2, 4, 6)), "layer*", 7),
    "Swin": (SMALL_SWIN, "stages.*.blocks.-1", 4),
    "PVT": (dict(type="PyramidVisionTransformer", num_layers=[1, 1, 1, 1]), "layers.*.1.-1", 4),
    "SSD": (dict(type="SSDVGG", depth=16, out_feature_indices=(22, 34), ceil_mode=True), "features.22", 1),
}
RESNET = dict(type="ResNet", depth=18, base_channels=16)
SA = LAYERS["SA"]


def with_attention(cfg: dict[str, Any], attention: dict[str, Any], **options: Any) -> Any:
    return MODELS.build({**cfg, "type": "WithAttention", "module": cfg["type"], "attention": attention, **options})


def trained(cfg: dict[str, Any], dtype: torch.dtype = torch.float64) -> Any:
    return as_if_trained(MODELS.build(copy.deepcopy(cfg)).to(dtype))


def assert_same_function(one: Any, other: Any) -> None:
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for ours, theirs in zip(outputs(one, x), outputs(other, x), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "SA") for name in NETWORKS), *(("ResNet", kind) for kind in LAYERS if kind != "SA")]
)
def test_it_starts_as_the_network_that_it_was(name: str, kind: str) -> None:
    cfg, place, count = NETWORKS[name]
    plain = trained(cfg)
    model = with_attention(cfg, {place: LAYERS[kind]}).double()
    assert type(model).__name__ == type(plain).__name__
    assert isinstance(model, type(plain))
    assert len(inserted(model)) == count
    own = [key for key in model.state_dict() if ".inserted_" not in key]
    assert own == list(plain.state_dict())
    model.init_weights()
    model.load_state_dict(plain.state_dict(), strict=True)
    assert_same_function(model, plain)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_function(copied, plain)
        assert len(inserted(copied)) == count


def losses_and_gradients(model: Any, steps: int) -> dict[str, Tensor]:
    """Train, and return the gradients of the attention at the last step."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        model.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 96))).backward()
        optimizer.step()
    return {name: value.grad for name, value in model.named_parameters() if ".inserted_" in name}


@pytest.mark.parametrize("kind", LAYERS)
def test_all_parameters_of_attention_have_gradients_at_the_second_step(kind: str) -> None:
    model = with_attention({**RESNET, "frozen_stages": -1}, {"layer*": LAYERS[kind]})
    model.init_weights()
    model.train()
    gradients = losses_and_gradients(model, 2)
    without = [name for name, gradient in gradients.items() if not gradient.abs().max() > 0]
    assert gradients
    assert not [name for name in without if "conv_mask.bias" not in name]  # a softmax does not see this bias of GC's


def test_copies_have_attention_of_their_own() -> None:
    model = with_attention(RESNET, {"layer*": SA})
    average = ExponentialMovingAverage(model, momentum=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update_parameters(model)  # the first update copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update_parameters(model)
    key = "layer1.1.inserted_sa.cweight"
    assert torch.equal(average.module.state_dict()[key] + 0.5, model.state_dict()[key])


@pytest.mark.parametrize("kind", ["SA", "CBAM", "ECA"])
def test_initialisers_do_not_touch_the_start(kind: str) -> None:
    wide: list[dict] = [dict(type="Normal", layer=["Conv2d", "Conv1d", "Linear"], std=1.0)]
    wide.append(dict(type="Constant", val=3, layer=["BatchNorm2d", "GroupNorm"]))
    model = with_attention({**RESNET, "init_cfg": wide}, {"layer*": LAYERS[kind]})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert {key for key in before if ".inserted_" in key} <= same
    assert not [key for key in same if key.endswith("weight") and ".inserted_" not in key]


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_weights_arrive_by_every_way_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = trained(RESNET)
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / "plain.pth")
    detector = {f"backbone.{key}": value for key, value in plain.state_dict().items()}
    torch.save(dict(state_dict=detector), tmp_path / "detector.pth")
    MMLogger.get_current_instance().addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        strictly = with_attention(RESNET, {"layer*": SA}).double()
        load_checkpoint(strictly, str(tmp_path / "plain.pth"), strict=True)
        init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix="backbone.")
        pretrained = with_attention({**RESNET, "init_cfg": init_cfg}, {"layer*": SA}).double()
        pretrained.init_weights()
    said = messages_of(caplog)
    assert "ResNet: 4 of 4 inserted attention layers are not in the weights and start as the identity" in said
    assert not [text for text in said if "missing" in text or "unexpected" in text]
    for model in (strictly, pretrained):
        assert_same_function(model, plain)


def test_weights_with_attention_are_loaded_as_they_are(tmp_path: Path) -> None:
    model = with_attention(RESNET, {"layer*": SA})
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), tmp_path / "trained.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "trained.pth"))
    other = with_attention({**RESNET, "init_cfg": init_cfg}, {"layer*": SA})
    other.init_weights()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


def test_plain_weights_start_trained_attention_again() -> None:
    plain, model = trained(RESNET), with_attention(RESNET, {"layer*": SA}).double()
    for name, value in model.named_parameters():
        if ".inserted_" in name:
            value.data.uniform_(0.5, 1.5)
    half = {key: value for key, value in model.state_dict().items() if not key.startswith("layer4.1.inserted_sa.")}
    before = model.state_dict()["layer1.1.inserted_sa.cweight"].clone()
    model.load_state_dict(half, strict=True)  # attention was added behind one more stage
    assert torch.equal(model.state_dict()["layer1.1.inserted_sa.cweight"], before)
    assert not model.state_dict()["layer4.1.inserted_sa.cweight"].any()
    model.load_state_dict(dict(conv1=torch.zeros(1)), strict=False)  # the weights of something else
    assert torch.equal(model.state_dict()["layer1.1.inserted_sa.cweight"], before)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert_same_function(model, plain)


def test_the_papers_start_is_the_layers_own() -> None:
    plain = trained(RESNET)
    model = with_attention(RESNET, {"layer4": dict(type="ShuffleAttention", groups=32)}, exact=False).double()
    model.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    last, theirs = outputs(model, x)[-1], outputs(plain, x)[-1]
    shuffled = theirs.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    torch.testing.assert_close(last, shuffled / (1 + torch.tensor(-1.0).double().exp()), rtol=1e-9, atol=1e-12)


def test_the_mode_and_frozen_stages_hold_for_attention() -> None:
    model = with_attention({**RESNET, "frozen_stages": 2, "norm_eval": True}, {"layer*": LAYERS["CBAM"]})
    trainable = {name for name, value in model.named_parameters() if value.requires_grad and "inserted" in name}
    assert {name.split(".")[0] for name in trainable} == {"layer3", "layer4"}
    model.train()
    assert {name for name, value in model.named_parameters() if value.requires_grad and "inserted" in name} == trainable
    norms = {name: part.training for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
    learning = {name.split(".")[0] for name, training in norms.items() if training}
    assert learning == {"layer3", "layer4"}
    assert all("inserted" in name for name, training in norms.items() if training)


def test_checkpointed_blocks_compute_the_same() -> None:
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = with_attention({**RESNET, "frozen_stages": -1, "with_cp": with_cp}, {"layer*": SA})
        model.train()
        gradients.append(losses_and_gradients(model, 1))
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], rtol=1e-4, atol=1e-9)


def test_necks_and_heads() -> None:
    neck = dict(type="FPN", in_channels=[16, 32], out_channels=24, num_outs=3)
    maps = [torch.randn(1, 16, 16, 16), torch.randn(1, 32, 8, 8)]
    yolo = dict(type="YOLOV3Neck", num_scales=2, in_channels=[64, 32], out_channels=[32, 16])
    yolo_maps = (torch.randn(1, 32, 16, 16), torch.randn(1, 64, 8, 8))
    head = dict(type="FCNMaskHead", num_convs=2, in_channels=24, conv_out_channels=32, num_classes=3)
    for cfg, place, inputs in (
        (neck, "fpn_convs.*", maps),
        (yolo, "detect*", yolo_maps),
        (head, "convs.*", torch.randn(2, 24, 14, 14)),
    ):
        plain = MODELS.build(dict(cfg))
        model = with_attention(cfg, {place: SA})
        model.load_state_dict(plain.state_dict(), strict=True)
        torch.testing.assert_close(outputs(model, inputs), outputs(plain, inputs), rtol=1e-5, atol=1e-5)
        assert inserted(model)


def test_auto_is_the_largest_that_fits() -> None:
    se = dict(type="SqueezeExcitation", ratio="auto")
    swin = with_attention(dict(SMALL_SWIN, embed_dims=24), {"stages.0.blocks.0": SA, "stages.1.blocks.*": se})
    assert swin.stages[0].blocks[0].inserted_sa.groups == 12
    assert swin.stages[1].blocks[1].inserted_se.fc[0].out_features == 8  # with ratio 6, since 16 would leave 3
    wide: Any = insert(nn.Sequential(nn.Conv2d(3, 256, 1)), {"0": SA})
    assert wide[0].inserted_sa.groups == 64


def test_one_attention_in_the_place_of_another() -> None:
    cfg = dict(type="EfficientNet", arch="b0", out_indices=(3, 4, 5))
    plain = trained(cfg, torch.float32)
    options = {key: value for key, value in cfg.items() if key != "type"}
    replace = {"layers.*.*.se": SA}
    model = MODELS.build(dict(type="WithAttention", module="EfficientNet", replace=replace, **options))
    assert not [key for key in model.state_dict() if ".se.conv" in key]
    state = plain.state_dict()
    model.load_state_dict(state, strict=True)
    kept = [key for key in model.state_dict() if ".se." not in key]
    assert kept == [key for key in state if ".se." not in key]
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in kept)
    model.train()
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    names = {name for name, value in model.named_parameters() if ".se." in name}
    assert names
    assert all(value.grad is not None for name, value in model.named_parameters() if name in names)
    again = MODELS.build(dict(type="WithAttention", module="EfficientNet", replace=replace, **options))
    again.load_state_dict(copy.deepcopy(model).state_dict(), strict=True)
    torch.testing.assert_close(outputs(again, torch.ones(1, 3, 64, 64)), outputs(model, torch.ones(1, 3, 64, 64)))


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (RESNET, {"layers*": SA}, r"no module of ResNet matches 'layers\*': ResNet has layer4, layer3.*there"),
    (RESNET, {"layer1.7": SA}, r"matches 'layer1\.7': ResNet at 'layer1' has 0, 1 there"),
    (RESNET, {"layer1.0.conv1.weight": SA}, r"at 'layer1\.0\.conv1' has no modules there"),
    (RESNET, {"": SA}, r"no module of ResNet matches ''"),
    (RESNET, {"layer*": SA, "layer4.1": SA}, r"'layer\*' and 'layer4\.1' both name layer4\.1"),
    (SMALL_SWIN, {"stages": SA}, r"stages is a list of 4 modules, not a layer: write 'stages\.\*'"),
    (SMALL_SWIN, {"stages.*": SA}, r"stages\.0, a SwinBlockSequence, returns a tuple of 4 values, not one feature map"),
    (SMALL_SWIN, {"patch_embed": SA}, r"patch_embed, a PatchEmbed, returns a tuple of 2 values"),
    (
        RESNET,
        {"layer1": dict(type="ShuffleAttention", groups=64)},
        r"at layer1\.1: groups=64 does not fit 16",
    ),
    (
        RESNET,
        {"layer1": dict(type="ShuffleAttention", in_channels=8)},
        r"in_channels=8 does not fit a map of 16",
    ),
    (RESNET, {"layer1": dict(type="BAM", ratio=4)}, r"BAM cannot start as the identity: .*exact=False"),
    (RESNET, {"layer1": dict(type="ShuffleAttention", groups=8, shuffle=True)}, r"moves channels .*exact=False"),
    (RESNET, {"layer1": dict(type="SqueezeExcitation", ratio=3)}, r"no attention at layer1\.1: ratio=3 does not fit"),
    (RESNET, {"layer1": dict(type="EfficientChannelAttention", groups="auto")}, r"does not choose groups itself"),
    (RESNET, {"layer1": dict(type="NoSuchAttention")}, r"type='NoSuchAttention' is not a registered layer"),
    (RESNET, {"layer1": dict(groups=8)}, r"is not the config of a layer"),
    (RESNET, {"layer1": dict(type="EfficientChannelAttention", size=3)}, r"cannot be built: .*'size'"),
    (RESNET, {}, r"no place for attention is given"),
    (RESNET, dict(type="ShuffleAttention"), r"is a layer instead of a map from places to layers"),
]


@pytest.mark.parametrize(("cfg", "attention", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_what_does_not_fit_is_refused_in_one_sentence(cfg: Any, attention: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        with_attention(cfg, attention)
    assert "\n" not in str(raised.value)


class Shares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Conv2d(3, 8, 1)
        self.apart = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


def test_networks_that_are_refused_stay_as_they_were() -> None:
    network = Shares()
    for attention, message in (
        ({"one": SA}, "one, other are one module, which the network shares"),
        ({"apart": SA}, "the channels of apart, a Linear, are not known, since no made-up input reaches it"),
    ):
        with pytest.raises(ValueError, match=message):
            insert(network, attention)
    assert type(network) is Shares
    model = with_attention(RESNET, {"layer1": SA})
    with pytest.raises(ValueError, match=r"layer1\.1 already has attention behind it"):
        insert(model, {"layer1": LAYERS["SE"]})


def test_what_returns_no_map_when_it_runs_is_named() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) if len(x) > 1 else x

    model = insert(nn.Sequential(nn.Conv2d(3, 8, 1), Flat()), {"1": SA})
    model(torch.randn(1, 3, 4, 4))
    with pytest.raises(TypeError, match=r"Flat returned a tensor of \(2, 128\) instead of a feature map"):
        model(torch.randn(2, 3, 4, 4))


def test_the_network_is_as_it_was_after_the_made_up_input() -> None:
    model: Any = trained(SMALL_SWIN, torch.float32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    insert(model, {"stages.*.blocks.-1": dict(type="EfficientChannelAttention")})
    assert isinstance(model, SwinTransformer)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any("forward" in vars(module) for module in model.modules())
