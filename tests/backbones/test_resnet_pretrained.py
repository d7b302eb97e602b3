"""ResNetPretrained: the exact start, and which checkpoints it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models import ResNet
from mmdet.registry import MODELS
from torch import Tensor, nn

from sa_mmdet.backbones import ResNetPretrained

# A quarter of the channels: the weights need a sixteenth of the time.
SMALL: dict[str, Any] = dict(base_channels=16, stem_channels=16)
GROUPS = {18: 8, 34: 4, 50: 16, 101: 16, 152: 16}


def resnet(depth: int, **options: Any) -> Any:
    return ResNet(depth, **SMALL, **options)


def evaluating(model: Any) -> Any:
    model.double().eval()  # MMDetection's eval() returns None
    return model


def randomised(model: Any) -> Any:
    """The model with random values for all tensors, the norms' statistics included, as if it were trained."""
    evaluating(model)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 4:
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():  # small, so that 50 residual additions do not grow large
            tensor.normal_(0, 0.2)
    return model


def sa_resnet(depth: int, checkpoint: Path | str, **options: object) -> Any:
    cfg = dict(type="SAResNet", depth=depth, groups=GROUPS[depth], **SMALL, **options)
    return evaluating(MODELS.build({**cfg, "init_cfg": dict(type="ResNetPretrained", checkpoint=str(checkpoint))}))


def assert_same_function(model: Any, plain: Any) -> None:
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(model(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("depth", [18, 34, 50, *(pytest.param(depth, marks=pytest.mark.long) for depth in (101, 152))])
def test_the_first_step_computes_the_plain_function(tmp_path: Path, depth: int) -> None:
    plain = randomised(resnet(depth))
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = sa_resnet(depth, tmp_path / "plain.pth")
    model.init_weights()
    assert_same_function(model, plain)
    # Attention is active all the same: its gates can learn.
    model.layer2[0].sa.sweight.data.fill_(1)
    with pytest.raises(AssertionError):
        assert_same_function(model, plain)


@pytest.mark.parametrize(
    "options",
    [
        dict(deep_stem=True, avg_down=True),
        dict(frozen_stages=1),
        dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)),
    ],
    ids=str,
)
def test_options_of_resnet(tmp_path: Path, options: dict) -> None:
    plain = randomised(resnet(50, **options))
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = sa_resnet(50, tmp_path / "plain.pth", **options)
    model.init_weights()
    assert_same_function(model, plain)


@pytest.mark.parametrize(
    "position", [*(pytest.param(f"after_conv{i}", marks=pytest.mark.long) for i in (1, 2)), "after_conv3"]
)
def test_any_position_in_mmdetections_own_resnet(tmp_path: Path, position: str) -> None:
    plain = randomised(resnet(50))
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = resnet(
        50,
        plugins=[dict(cfg=dict(type="ShuffleAttention", groups=8), position=position)],
        init_cfg=dict(type="ResNetPretrained", checkpoint=str(tmp_path / "plain.pth")),
    )
    evaluating(model).init_weights()
    assert_same_function(model, plain)


def test_later_plugins_and_deformable_convolutions_keep_their_own_start(tmp_path: Path) -> None:
    plugins = [dict(cfg=dict(type="ContextBlock", ratio=1 / 16), position="after_conv3")]
    plain = randomised(resnet(50))
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = sa_resnet(50, tmp_path / "plain.pth", plugins=plugins)
    model.init_weights()
    assert_same_function(model, plain)  # a new ContextBlock adds zero
    deformable = dict(dcn=dict(type="DCN", deform_groups=1), stage_with_dcn=(False, True, True, True))
    sa_resnet(50, tmp_path / "plain.pth", **deformable).init_weights()


def as_detector(state: dict[str, Tensor]) -> dict:
    neck = {"neck.lateral_convs.0.conv.weight": torch.zeros(1), "rpn_head.rpn_conv.weight": torch.zeros(1)}
    return dict(state_dict={f"backbone.{k}": v for k, v in state.items()} | neck, meta=dict(epoch=12))


def as_classifier(state: dict[str, Tensor]) -> dict:
    return dict(state_dict={f"backbone.{k}": v for k, v in state.items()} | {"head.fc.weight": torch.zeros(1)})


def as_torchvision(state: dict[str, Tensor]) -> dict:
    return {k: v for k, v in state.items() if "num_batches" not in k} | {"fc.weight": torch.zeros(1)}


def as_data_parallel(state: dict[str, Tensor]) -> dict:
    return dict(model={f"module.{k}": v for k, v in state.items()})


def as_pretrained_models(state: dict[str, Tensor]) -> dict:
    return state | {"last_linear.weight": torch.zeros(1), "last_linear.bias": torch.zeros(1)}


@pytest.mark.parametrize("naming", [as_detector, as_classifier, as_torchvision, as_data_parallel, as_pretrained_models])
def test_namings(tmp_path: Path, naming: Callable[[dict], dict]) -> None:
    plain = randomised(resnet(18))
    torch.save(naming(plain.state_dict()), tmp_path / "plain.pth")
    model = sa_resnet(18, tmp_path / "plain.pth")
    model.init_weights()
    assert_same_function(model, plain)


def test_timms_deep_stem(tmp_path: Path) -> None:
    plain = randomised(resnet(50, deep_stem=True, avg_down=True))
    state = {}
    for key, value in plain.state_dict().items():
        key = key.replace("stem.7.", "bn1.") if key.startswith("stem.7.") else key.replace("stem.", "conv1.")
        state[key] = value
    torch.save(state, tmp_path / "resnet50d.pth")
    model = sa_resnet(50, tmp_path / "resnet50d.pth", deep_stem=True, avg_down=True)
    model.init_weights()
    assert_same_function(model, plain)


def altered(**changes: object) -> dict:
    state = resnet(50).state_dict()
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del state[key]
        else:
            state[key] = value
    return state


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        (lambda: resnet(101).state_dict(), {}, "weights of a ResNet-101 for a ResNet-50"),
        (lambda: resnet(34).state_dict(), {}, "weights of a ResNet-34 for a ResNet-50"),
        (lambda: altered(layer3__2__bn2__weight=None), {}, r"keys are missing: layer3.2.bn2.weight"),
        (
            lambda: altered(layer1__0__sa__cweight=torch.zeros(1)),
            {},
            r"unexpected keys: layer1.0.sa.*'Pretrained'",
        ),
        (lambda: altered(conv1__weight=torch.zeros(16, 1, 7, 7)), {}, r"conv1.weight \(16, 1, 7, 7\) for \(16, 3,"),
        (lambda: altered(bn1__weight=torch.full((16,), torch.nan)), {}, "NaN or Inf: bn1.weight"),
        (lambda: resnet(50).state_dict(), dict(deep_stem=True), "keys are missing: stem.0.weight"),
        (lambda: dict(meta={}, state_dict={}), {}, "holds no state dict"),
        (lambda: [1, 2], {}, "holds no state dict"),
        (
            lambda: dict(
                meta=dict(cfg="model = dict(backbone=dict(style='caffe'))"), state_dict=resnet(50).state_dict()
            ),
            {},
            "weights of style 'caffe', the backbone has style='pytorch'",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, checkpoint: Callable[[], object], options: dict, message: str
) -> None:
    torch.save(checkpoint(), tmp_path / "other.pth")
    model = sa_resnet(50, tmp_path / "other.pth", **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        ResNetPretrained(str(tmp_path / "other.pth"))(model)
    assert "other.pth" in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_files_that_are_not_checkpoints(tmp_path: Path) -> None:
    model = sa_resnet(50, "unused")
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        ResNetPretrained(str(tmp_path / "absent.pth"))(model)
    torch.save(resnet(18).state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, content in (("empty", b""), ("text", b"not a checkpoint"), ("truncated", whole[: len(whole) // 2])):
        (tmp_path / f"{name}.pth").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.pth: is not a readable checkpoint"):
            ResNetPretrained(str(tmp_path / f"{name}.pth"))(model)
    with pytest.raises(ValueError, match=r"no key begins with the prefix 'neck\.'"):
        ResNetPretrained(str(tmp_path / "whole.pth"), prefix="neck.")(model)


def test_a_caffe_name_is_refused_for_a_pytorch_backbone(tmp_path: Path) -> None:
    torch.save(resnet(50).state_dict(), tmp_path / "resnet50_caffe.pth")
    with pytest.raises(ValueError, match="style 'caffe'"):
        sa_resnet(50, tmp_path / "resnet50_caffe.pth").init_weights()
    sa_resnet(50, tmp_path / "resnet50_caffe.pth", style="caffe").init_weights()


def test_a_style_is_that_of_the_backbones_own_entry_and_name(tmp_path: Path) -> None:
    state = resnet(50).state_dict()
    detector = {f"module.backbone.{key}": value for key, value in state.items()}
    caffe, teacher = "dict(type='ResNet', style='caffe')", "dict(backbone=dict(type='ResNet', style='caffe'))"
    (tmp_path / "msra_caffe").mkdir()
    for name, content, prefix in (
        ("msra_caffe/resnet50.pth", state, None),  # a folder
        ("my_caffe_run.pth", state, None),
        (
            "a.pth",
            dict(meta=dict(cfg=f"teacher = {teacher}\nmodel = dict(backbone=dict(depth=50))"), state_dict=detector),
            None,
        ),
        (
            "b.pth",
            dict(meta=dict(cfg=f"model = dict(teacher={teacher}, backbone=dict(depth=50))"), state_dict=detector),
            None,
        ),
        ("c.pth", detector, "module.backbone."),  # as read off the file
        ("d.pth", dict(meta=dict(cfg="import os"), state_dict=state), None),
    ):
        torch.save(content, tmp_path / name)
        ResNetPretrained(str(tmp_path / name), prefix)(sa_resnet(50, "unused"))
    recorded = dict(meta=dict(cfg=f"model = dict(backbone={caffe})"), state_dict=detector)
    torch.save(recorded, tmp_path / "e.pth")
    with pytest.raises(ValueError, match=r"style 'caffe'.*set check_style=False"):
        ResNetPretrained(str(tmp_path / "e.pth"))(sa_resnet(50, "unused"))
    ResNetPretrained(str(tmp_path / "e.pth"), check_style=False)(sa_resnet(50, "unused"))
    torch.save(resnet(18).state_dict(), tmp_path / "resnet18_caffe.pth")  # whose blocks have no style
    ResNetPretrained(str(tmp_path / "resnet18_caffe.pth"))(sa_resnet(18, "unused"))


def test_attention_that_cannot_be_undone_is_refused(tmp_path: Path) -> None:
    attention = dict(cfg=dict(type="ShuffleAttention", groups=8), position="after_conv3")
    context = dict(cfg=dict(type="ContextBlock", ratio=1 / 16), position="after_conv3")
    torch.save(resnet(50).state_dict(), tmp_path / "plain.pth")
    load = ResNetPretrained(str(tmp_path / "plain.pth"))
    with pytest.raises(ValueError, match="ShuffleAttention follows another plugin: put it first"):
        load(resnet(50, plugins=[context, attention]))
    model = MODELS.build(
        dict(type="ResNeXt", depth=50, groups=32, base_width=4, plugins=[{**attention, "position": "after_conv2"}])
    )
    torch.save(
        MODELS.build(dict(type="ResNeXt", depth=50, groups=32, base_width=4)).state_dict(), tmp_path / "plain.pth"
    )
    with pytest.raises(ValueError, match="needs an ungrouped convolution"):
        load(model)


def test_attention_after_stages_has_no_exact_start(tmp_path: Path) -> None:
    torch.save(resnet(18).state_dict(), tmp_path / "plain.pth")
    cfg = dict(type="AttentionResNet", depth=18, **SMALL, stage_attention=dict(type="BAM"))
    init_cfg = dict(type="ResNetPretrained", checkpoint=str(tmp_path / "plain.pth"))
    model: Any = MODELS.build({**cfg, "init_cfg": init_cfg})
    with pytest.raises(ValueError, match=r"layer1\.bam.* belongs to a layer after a stage"):
        model.init_weights()
