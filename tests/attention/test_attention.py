"""What every registered attention layer must do, with all its options."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import needs
import pytest
import reference
import torch
from mmcv.cnn import build_plugin_layer
from mmdet.models import ResNet
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import sa_mmdet.attention
from sa_mmdet.attention import Attention, attention_types
from sa_mmdet.attention.efficient_channel_attention import default_kernel_size

CHANNELS = 32


@dataclass
class Case:
    cfg: dict[str, Any]
    formula: Callable[..., Tensor]
    names: set[str]  # the names of its released weights
    options: dict[str, Any] = field(default_factory=dict)  # the formula's arguments

    @property
    def id(self) -> str:
        return "-".join(str(value) for value in self.cfg.values())


SA_NAMES = {"cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias"}
SE_NAMES = {"fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"}
CBAM_NAMES = {f"ChannelGate.mlp.{i}.{field}" for i in (1, 3) for field in ("weight", "bias")} | {
    f"SpatialGate.spatial.{name}"
    for name in (
        "conv.weight",
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
        "bn.num_batches_tracked",
    )
}
SA = dict(type="ShuffleAttention", groups=4)
SE = dict(type="SqueezeExcitation", ratio=4)
G4 = dict(groups=4)
BRANCHES = dict(type="GroupBranches", groups=4)
CHANNEL, SPATIAL = {"cweight", "cbias"}, {"sweight", "sbias", "gn.weight", "gn.bias"}
CASES = [
    Case(SA, reference.shuffle_attention, SA_NAMES, G4),
    Case({**SA, "norm": False}, reference.shuffle_attention, SA_NAMES - {"gn.weight", "gn.bias"}, G4),
    Case({**SA, "shuffle": False}, reference.shuffle_attention, SA_NAMES, G4 | dict(shuffle=False)),
    Case(
        {**SA, "transform": "none"}, reference.shuffle_attention, {"gn.weight", "gn.bias"}, G4 | dict(transform="none")
    ),
    Case({**SA, "transform": "conv"}, reference.shuffle_attention, SA_NAMES, G4 | dict(transform="conv")),
    Case(SE, reference.squeeze_excitation, SE_NAMES),
    Case({**SE, "bias": False}, reference.squeeze_excitation, {"fc.0.weight", "fc.2.weight"}),
    Case({**SE, "pool": "max"}, reference.squeeze_excitation, SE_NAMES, dict(pool="max")),
    Case({**SE, "pool": "none"}, reference.squeeze_excitation, SE_NAMES, dict(pool="none")),
    Case({**SE, "gate": "tanh"}, reference.squeeze_excitation, SE_NAMES, dict(gate="tanh")),
    Case({**SE, "gate": "relu"}, reference.squeeze_excitation, SE_NAMES, dict(gate="relu")),
    Case(dict(type="EfficientChannelAttention"), reference.efficient_channel_attention, {"conv.weight"}),
    Case(dict(type="EfficientChannelAttention", kernel_size=7), reference.efficient_channel_attention, {"conv.weight"}),
    Case(dict(type="SpatialGroupEnhance", groups=4), reference.spatial_group_enhance, {"weight", "bias"}, G4),
    *(
        Case({**BRANCHES, **options}, reference.group_branches, names, {**G4, **options})
        for options, names in (
            (dict(), SA_NAMES),
            (dict(groups=1), SA_NAMES),
            (dict(shuffle=False), SA_NAMES),
            (dict(fusion="add"), SA_NAMES),
            (dict(fusion="add", groups=1, shuffle=False), SA_NAMES),
            (dict(branches="channel"), CHANNEL),
            (dict(branches="spatial", groups=32), SPATIAL),
            (dict(branches="channel", groups=1, shuffle=False), CHANNEL),
        )
    ),
    Case(dict(type="CBAM", ratio=4), reference.cbam, CBAM_NAMES, dict(training=True)),
]
# After a stage, and for inference: see tests/checkpoints/test_conversion.py and tests/test_deployment.py, too.
OUTSIDE_BLOCKS: list[dict[str, Any]] = [dict(type="BAM", ratio=4), dict(type="BakedShuffleAttention")]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def build(case: Case, randomised: bool = True) -> Any:
    _, module = build_plugin_layer(case.cfg, in_channels=CHANNELS)
    if randomised:
        for parameter in module.parameters():
            nn.init.normal_(parameter, 0, 0.5)
    return module


def test_every_registered_module_is_tested() -> None:
    known = {name: kind for name, kind in attention_types().items() if kind.__module__.startswith("sa_mmdet.")}
    assert {kind.__name__ for kind in known.values()} == set(known) < set(sa_mmdet.attention.__all__)
    assert set(known) == {case.cfg["type"] for case in CASES} | {cfg["type"] for cfg in OUTSIDE_BLOCKS}


# Odd sizes, batches of one, single rows and, last, a single position.
@pytest.mark.parametrize("shape", [(2, CHANNELS, 7, 5), (1, CHANNELS, 8, 8), (3, CHANNELS, 1, 6), (2, CHANNELS, 1, 1)])
@every_case
def test_outputs_and_gradients_equal_the_formula(case: Case, shape: tuple[int, ...]) -> None:
    module = build(case).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    parameters = dict(module.named_parameters())
    expected = case.formula(x, parameters, **case.options)
    actual = module(x)
    assert actual.shape == x.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
    weight = torch.randn_like(x)
    inputs = [x, *parameters.values()]
    ours = torch.autograd.grad((actual * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-9, atol=1e-10)


def test_cbam_in_evaluation_mode_equals_the_formula() -> None:
    module = build(CASES[-1]).double()
    bn = module.SpatialGate.spatial.bn
    bn.running_mean.fill_(0.3)
    bn.running_var.fill_(2.0)
    module.eval()
    x = torch.randn(2, CHANNELS, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), reference.cbam(x, module.state_dict(), training=False), rtol=0, atol=1e-10)


def test_bam_in_evaluation_mode_equals_the_formula_with_gradients() -> None:
    _, module = build_plugin_layer(dict(type="BAM", ratio=4), in_channels=CHANNELS)
    module.double().eval()
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    x = torch.randn(2, CHANNELS, 7, 5, dtype=torch.float64, requires_grad=True)
    state = dict(module.named_buffers()) | dict(module.named_parameters())
    pairs = []
    for out in (module(x), reference.bam(x, state)):
        pairs.append([out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])])
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cfg", OUTSIDE_BLOCKS, ids=lambda cfg: cfg["type"])
def test_layers_outside_blocks_learn_and_take_half_precision(cfg: dict) -> None:
    for scope in ("mmdet", "mmengine"):
        with DefaultScope.overwrite_default_scope(scope):
            _, module = build_plugin_layer(cfg, in_channels=CHANNELS)
    x = torch.randn(2, CHANNELS, 6, 6)
    module(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    module.eval()
    if cfg["type"] == "BakedShuffleAttention":
        needs.mixed_group_norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), module(x), rtol=0.05, atol=0.05)


@every_case
def test_every_parameter_gets_a_finite_gradient_from_the_start(case: Case) -> None:
    module = build(case, randomised=False)
    module(torch.randn(2, CHANNELS, 6, 6)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", needs.HALF)
@every_case
def test_mixed_precision_is_close_to_float32(case: Case, dtype: torch.dtype) -> None:
    module = build(case)
    x = (torch.randn(2, CHANNELS, 24, 24) + 4).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        actual = module(x)
    assert actual.dtype == dtype
    expected = module(x.float())
    # A gate's logit passes two layers in half precision. Each rounds its inputs, weights and sum by up to the size of
    # the largest of them, and a gate such as ReLU does not reduce the error.
    tolerance = 8 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=tolerance)
    actual.float().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@every_case
def test_memory_formats_do_not_matter(case: Case) -> None:
    module = build(case).double().eval()
    x = torch.randn(2, CHANNELS, 6, 5, dtype=torch.float64)
    expected = module(x)
    sliced = torch.stack((x, -x), dim=-1)[..., 0]
    assert not sliced.is_contiguous()
    for same in (x.to(memory_format=torch.channels_last), sliced):
        torch.testing.assert_close(module(same), expected, rtol=0, atol=1e-12)


@every_case
def test_it_can_be_traced(case: Case) -> None:
    module = build(case).double().eval()
    x = torch.randn(2, CHANNELS, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.trace(module, x)(x), module(x), rtol=0, atol=1e-12)


@needs.export
@every_case
def test_it_can_be_exported(case: Case) -> None:
    module = build(case).double().eval()
    x = torch.randn(2, CHANNELS, 6, 6, dtype=torch.float64)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x), rtol=0, atol=1e-12)


@every_case
def test_several_values_of_one_parameter_are_computed_at_once(case: Case) -> None:
    pytest.importorskip("torch.func", reason="it came with PyTorch 2")
    layer = build(case).double().eval()
    x = torch.randn(2, CHANNELS, 5, 3, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        values = torch.randn(3, *parameter.shape, dtype=torch.float64)

        def output(value: Tensor, name: str = name) -> Tensor:
            result: Tensor = torch.func.functional_call(layer, {name: value}, (x,))
            return result

        with torch.no_grad():
            expected = torch.stack([output(value) for value in values])
            torch.testing.assert_close(torch.func.vmap(output)(values), expected, rtol=1e-10, atol=1e-10)


@every_case
def test_names_are_those_of_the_released_weights(case: Case) -> None:
    assert set(build(case).state_dict()) == case.names


@every_case
def test_any_default_scope_finds_it(case: Case) -> None:
    for scope in ("mmdet", "mmengine", "another"):
        with DefaultScope.overwrite_default_scope(scope):
            name, module = build_plugin_layer(case.cfg, in_channels=CHANNELS)
        assert isinstance(module, Attention)
        assert name == module._abbr_


def has_no_exact_start(case: Case) -> bool:
    return case.cfg.get("transform") == "none" or case.cfg.get("gate") in ("tanh", "relu")


@every_case
def test_an_exact_start_only_scales_and_moves(case: Case) -> None:
    module = build(case).double()
    if has_no_exact_start(case):
        with pytest.raises(ValueError, match="cannot start as a plain network: use"):
            module.start_exactly()
        return
    destination, gate = module.start_exactly()
    x = torch.randn(2, CHANNELS, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x)[:, destination], gate * x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.long)])
@every_case
def test_resnet_pretrained_starts_from_the_plain_function(case: Case, depth: int, tmp_path: Path) -> None:
    plain = ResNet(depth)
    plain.init_weights()
    for name, tensor in plain.state_dict().items():  # as if trained, with no norm that is an identity
        if name.split(".")[-2].startswith("bn") or "downsample.1" in name:
            tensor.uniform_(0.1, 0.4) if tensor.is_floating_point() else None
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    init_cfg = dict(type="ResNetPretrained", checkpoint=str(tmp_path / "plain.pth"))
    model = MODELS.build(dict(type="AttentionResNet", depth=depth, attention=case.cfg, init_cfg=init_cfg))
    if has_no_exact_start(case):
        with pytest.raises(ValueError, match="cannot start as a plain network"):
            model.init_weights()
        return
    model.init_weights()
    for network in (model, plain):
        network.double()
        network.eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(model(x), plain(x), strict=True):
        # The weights passed through float32 after their division by the gate.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_cbams_zero_survives_mmdetections_initialisation() -> None:
    for cfg in (dict(type="AttentionResNet", attention=dict(type="CBAM")), dict(type="ResNet", plugins=PLUGIN)):
        model = MODELS.build(dict(depth=50, **cfg))
        model.init_weights()
        assert model.layer1[0].cbam.SpatialGate.spatial.bn.weight.item() == 0
        assert model.layer1[0].bn1.weight.unique().item() == 1


PLUGIN = [dict(cfg=dict(type="CBAM"), position="after_conv3")]


def test_attention_by_stage() -> None:
    kernel_sizes = (3, 5, 5, 7)
    attention = [dict(type="EfficientChannelAttention", kernel_size=k) for k in kernel_sizes]
    model = MODELS.build(dict(type="AttentionResNet", depth=50, attention=attention))
    assert [getattr(model, f"layer{i}")[0].eca.conv.kernel_size for i in (1, 2, 3, 4)] == [(k,) for k in kernel_sizes]
    model = MODELS.build(dict(type="AttentionResNet", depth=18, attention=[None, None, dict(type="CBAM"), None]))
    assert [hasattr(getattr(model, f"layer{i}")[1], "cbam") for i in (1, 2, 3, 4)] == [False, False, True, False]


def test_the_formula_for_ecas_kernel() -> None:
    assert [default_kernel_size(channels) for channels in (256, 512, 1024, 2048)] == [5, 5, 5, 7]


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (dict(type="SqueezeExcitation", ratio=5), "ratio=5 does not fit 32 channels.*values that fit: 1, 2, 4"),
        (dict(type="SqueezeExcitation", ratio=0), "ratio=0 does not fit"),
        (dict(type="SqueezeExcitation", pool="mean"), "pool='mean' is unknown: choose one of 'avg', 'max', 'none'"),
        (dict(type="SqueezeExcitation", gate="swish"), "gate='swish' is unknown"),
        (
            dict(type="EfficientChannelAttention", kernel_size=4),
            "kernel_size=4 must be odd and positive: use 5",
        ),
        (dict(type="EfficientChannelAttention", kernel_size=-1), "kernel_size=-1 must be odd and positive: use 1"),
        (dict(type="SpatialGroupEnhance", groups=5), "groups=5 does not fit 32 channels.*values that fit: 1, 2, 4"),
        (dict(type="SpatialGroupEnhance", groups=64), "groups=64 does not fit 32 channels"),
        (dict(type="CBAM", ratio=3), "ratio=3 does not fit"),
        (dict(type="CBAM", kernel_size=6), "kernel_size=6 must be odd and positive: use 7"),
        (dict(type="ShuffleAttention", groups=4, transform="linear"), "transform='linear' is unknown"),
        (dict(type="GroupBranches", groups=32), "groups=32 does not fit 32 channels: 2 .* half a group.*fit: 1, 2, 4"),
        (dict(type="GroupBranches", fusion="add"), "groups=64 does not fit 32 channels: .*fit: 1, 2, 4, 8, 16, 32"),
        (dict(type="GroupBranches", groups=0, branches="spatial"), "groups=0 does not fit 32 channels"),
        (dict(type="GroupBranches", branches="none"), "branches='none' is unknown: choose one of 'both', 'channel'"),
        (dict(type="GroupBranches", fusion="mul"), "fusion='mul' is unknown: choose one of 'cat', 'add'"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_plugin_layer(cfg, in_channels=CHANNELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(attention=[dict(type="CBAM")] * 3), "3 entries, but num_stages=4"),
        (dict(attention=dict(type="CBAM"), plugins=PLUGIN), "duplicate plugin CBAM at 'after_conv3' of stage 1"),
        (dict(plugins=PLUGIN * 2), "duplicate plugin CBAM"),
    ],
    ids=str,
)
def test_backbones_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type="AttentionResNet", depth=50, **options))
