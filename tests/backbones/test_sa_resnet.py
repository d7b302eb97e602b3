"""SAResNet with the options of MMDetection's ResNet."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS

from sa_mmdet.attention import ShuffleAttention

GROUPS = {18: 32, 34: 16, 50: 64, 101: 64, 152: 64}


def build(depth: int = 50, **options: object) -> Any:
    return MODELS.build(dict(type="SAResNet", depth=depth, **{"groups": GROUPS.get(depth, 64), **options}))


def attention(model: torch.nn.Module) -> list[ShuffleAttention]:
    return [m for m in model.modules() if isinstance(m, ShuffleAttention)]


@pytest.mark.parametrize("depth", GROUPS)
def test_every_depth_has_attention_in_every_block_and_trains(depth: int) -> None:
    model = build(depth)
    plain = ResNet(depth)
    assert len(attention(model)) == sum(plain.stage_blocks)
    assert {key for key in model.state_dict() if ".sa." not in key} == set(plain.state_dict())
    outputs = model(torch.randn(2, 3, 64, 64))
    assert [tuple(out.shape) for out in outputs] == [tuple(out.shape) for out in plain(torch.zeros(2, 3, 64, 64))]
    sum(out.square().mean() for out in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("depth", "added"), [(50, 708), (101, 1524)])
def test_the_number_of_parameters_is_the_papers(depth: int, added: int) -> None:
    def count(model: torch.nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert count(build(depth)) - count(ResNet(depth)) == added


def test_attention_follows_the_last_norm() -> None:
    for depth, norm in ((18, "bn2"), (50, "bn3")):
        model = build(depth)
        model.eval()
        block = model.layer1[0]
        seen: dict[str, torch.Tensor] = {}
        getattr(block, norm).register_forward_hook(lambda m, i, o, seen=seen: seen.update(norm=o.clone()))
        block.sa.register_forward_pre_hook(lambda m, i, seen=seen: seen.update(attention=i[0].clone()))
        block(torch.randn(1, 64, 8, 8))
        assert torch.equal(seen["norm"], seen["attention"])


@pytest.mark.parametrize("wrapper", ["state_dict", None])
def test_a_released_file_loads_as_it_is(tmp_path: Path, wrapper: str | None) -> None:
    source = build(50)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    state |= {"module.fc.weight": torch.zeros(1000, 2048), "module.fc.bias": torch.zeros(1000)}
    torch.save({wrapper: state, "epoch": 99} if wrapper else state, tmp_path / "sa_resnet50.pth.tar")
    model = build(50, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "sa_resnet50.pth.tar")))
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_stages_without_attention() -> None:
    model = build(50, stage_with_attention=(False, True, False, True))
    assert [len(attention(getattr(model, f"layer{i}"))) for i in (1, 2, 3, 4)] == [0, 4, 0, 3]
    # The groups must fit only the stages with attention.
    assert attention(build(18, groups=64, stage_with_attention=(False, True, True, True)))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    "options",
    [
        dict(with_cp=True),
        dict(deep_stem=True, avg_down=True),
        dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 2)),
        dict(frozen_stages=2, norm_eval=False),
        dict(style="caffe"),
        dict(norm_cfg=dict(type="SyncBN", requires_grad=False)),
    ],
    ids=str,
)
def test_options_of_resnet(depth: int, options: dict) -> None:
    model = build(depth, **options)
    model.init_weights()
    model.train()
    x = torch.randn(2, 3, 64, 64)
    if options.get("norm_cfg"):
        model.eval()  # synchronised batch norm trains on GPUs alone
    outputs = model(x)
    assert len(outputs) == len(model.out_indices)
    sum(out.sum() for out in outputs).backward()
    for i in range(1, model.frozen_stages + 1):
        assert not any(p.requires_grad for p in getattr(model, f"layer{i}").parameters())


def test_deformable_convolution_and_other_plugins() -> None:
    model = build(
        50,
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, False, True),
        plugins=[
            dict(cfg=dict(type="ContextBlock", ratio=1 / 16), stages=(False, True, True, True), position="after_conv3")
        ],
    )
    assert len(model(torch.randn(1, 3, 64, 64))) == 4
    assert type(model.layer4[0].conv2).__name__ == "ModulatedDeformConv2dPack"
    assert model.layer2[0].after_conv3_plugin_names == ["sa", "context_block"]


def test_plugins_of_a_basic_block() -> None:
    plugin = dict(cfg=dict(type="ContextBlock", ratio=1 / 16), position="after_conv2")
    assert build(18, plugins=[plugin]).layer1[0].after_conv2_plugin_names == ["sa", "context_block"]
    with pytest.raises(ValueError, match=r"position 'after_conv3'.*'after_conv2' only"):
        build(18, plugins=[{**plugin, "position": "after_conv3"}])


@pytest.mark.parametrize("depth", [18, 50])
def test_blocks_start_as_identities_like_mmdetections(depth: int) -> None:
    model = build(depth)
    model.init_weights()
    last = "bn2" if depth == 18 else "bn3"
    assert all(getattr(block, last).weight.abs().max() == 0 for block in model.layer3)
    assert build(depth, zero_init_residual=False).layer1[0].init_cfg is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(depth=18, groups=64), "groups=64 does not fit stages of 64, 128, 256, 512 channels.*1, 2, 4, 8, 16, 32$"),
        (dict(groups=48), "groups=48 does not fit"),
        (dict(groups=0), "groups=0 does not fit"),
        (dict(stage_with_attention=(True,)), "1 entries, but num_stages=4"),
        (
            dict(plugins=[dict(cfg=dict(type="ShuffleAttention"), position="after_conv3")]),
            "duplicate plugin ShuffleAttention at 'after_conv3' of stage 1",
        ),
        (dict(depth=49), "invalid depth 49"),
        (dict(group=64), "unexpected keyword argument 'group'"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        build(**{"depth": 50, **options})


def test_attention_after_stages_freezes_and_learns_with_them() -> None:
    model: Any = MODELS.build(
        dict(type="AttentionResNet", depth=18, stage_attention=dict(type="BAM", ratio=8), frozen_stages=1)
    )
    after = {name: p for name, p in model.named_parameters() if ".bam." in name}
    assert {name.split(".")[0] for name in after} == {"layer1", "layer2", "layer3"}
    assert all(parameter.requires_grad == (not name.startswith("layer1")) for name, parameter in after.items())
    model.train(True)
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in after.items():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
