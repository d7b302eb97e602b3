"""Released weights, made up under their names, and what becomes of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_checkpoints import fuzz
from mmdet.registry import MODELS
from mmengine.config import Config
from places import REPOSITORY, Tool
from released import ECA_KERNELS, KINDS, features, weights
from safetensors.torch import save_file
from torch import Tensor

from sa_mmdet.checkpoints import convert, convert_tensors, released, write

State = dict[str, Tensor]


def loaded(backbone: dict, state: State) -> Any:
    model: Any = MODELS.build(backbone)
    model.double().eval()  # MMDetection's eval() returns nothing
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def sa50() -> State:
    return weights("sa")


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_released_function_is_the_converted_one(kind: str, depth: int) -> None:
    state = {key: value.double() if value.is_floating_point() else value for key, value in weights(kind, depth).items()}
    converted = convert_tensors({f"module.{key}": value for key, value in state.items()}, "made up")
    assert converted.attention == kind.removesuffix("-bias")
    assert converted.backbone["depth"] == depth
    if kind == "eca":
        assert tuple(layer["kernel_size"] for layer in converted.backbone["attention"]) == ECA_KERNELS[depth]
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        actual = loaded(converted.backbone, converted.state)(x)
        for ours, theirs in zip(actual, features(state, kind, depth, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert set(converted.head) == {"weight", "bias"}
    assert converted.unused == converted.added == []


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_every_bit_is_the_same(kind: str) -> None:
    state = {f"module.{key}": value for key, value in weights(kind).items() if not key.startswith("fc.")}
    back = released(convert_tensors(state, "made up").state)["state_dict"]
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def as_timm_se(state: State) -> State:
    def shaped(key: str, value: Tensor) -> Tensor:
        return value[:, :, None, None] if ".se." in key and value.dim() == 2 else value

    names = {"se.fc.0": "se.fc1", "se.fc.2": "se.fc2"}
    return {re.sub(r"se\.fc\.[02]", lambda m: names[m[0]], key): shaped(key, value) for key, value in state.items()}


def as_mmpretrain_se(state: State) -> State:
    names = {"se.fc.0": "se_layer.conv1.conv", "se.fc.2": "se_layer.conv2.conv"}
    moved = {re.sub(r"se\.fc\.[02]", lambda m: names[m[0]], key): value for key, value in state.items()}
    return {
        (f"head.{key}" if key.startswith("fc.") else f"backbone.{key}"): (
            value[:, :, None, None] if "se_layer" in key and value.dim() == 2 else value
        )
        for key, value in moved.items()
    }


def as_timm_eca(state: State) -> State:
    return {key.replace(".eca.conv.", ".se.conv."): value for key, value in state.items()}


def as_mmdetection(state: State) -> State:
    return {f"backbone.{key}": value for key, value in state.items() if not key.startswith("fc.")}


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("kind", "naming"),
    [
        ("se-bias", as_timm_se),
        ("se-bias", as_mmpretrain_se),
        ("eca", as_timm_eca),
        ("sa", as_mmdetection),
        ("none", without_counters),
    ],
)
def test_other_namings_give_the_same_weights(kind: str, naming: Callable[[State], State]) -> None:
    state = weights(kind)
    expected, actual = convert_tensors(state, "plain"), convert_tensors(naming(state), "renamed")
    assert actual.backbone == expected.backbone
    assert set(actual.state) == set(expected.state)
    for key, value in expected.state.items():
        if key not in actual.added:
            assert torch.equal(actual.state[key], value)
    assert all(torch.equal(actual.head[key], expected.head[key]) for key in actual.head)


def test_stages_without_attention_are_seen(sa50: State) -> None:
    state = {key: value for key, value in sa50.items() if not re.match(r"layer[14]\.\d+\.sa", key)}
    assert convert_tensors(state, "made up").backbone["stage_with_attention"] == (False, True, True, False)


def wrapped(state: State) -> dict[str, Any]:
    state = {f"module.{key}": value for key, value in state.items()}
    return dict(epoch=100, arch="sa_resnet50", state_dict=state, best_acc1=torch.tensor(77.7), optimizer=dict(state={}))


@pytest.mark.parametrize("form", ["released.pth.tar", "raw.pth", "nested.pth", "legacy.pth", "file.safetensors"])
def test_the_tool_takes_every_form_of_file(form: str, sa50: State, tool: Tool, tmp_path: Path) -> None:
    source, target = tmp_path / form, tmp_path / "out.pth"
    if form == "file.safetensors":
        save_file(sa50, source)
    elif form == "legacy.pth":
        torch.save(wrapped(sa50), source, _use_new_zipfile_serialization=False)
    else:
        whole = {"raw.pth": sa50, "nested.pth": dict(weights=dict(net=sa50))}
        torch.save(whole.get(form, wrapped(sa50)), source)
    status, printed, _ = tool("model_converters/convert_checkpoint.py", source, target)
    assert status == 0
    assert re.search(r"layer\*\.\*\.sa\.gn\.weight +-> backbone\.layer\*\.\*\.sa\.gn\.weight  \(16\)", printed)
    assert "unused keys: none" in printed
    assert "backbone=dict(type='SAResNet', depth=50, groups=64, init_cfg=[dict(type='Pretrained'" in printed
    state = torch.load(target, weights_only=True)["state_dict"]
    assert torch.equal(state["backbone.layer4.2.sa.sweight"], sa50["layer4.2.sa.sweight"])
    assert torch.equal(state["head.fc.bias"], sa50["fc.bias"])


def test_the_printed_config_works_over_any_base(sa50: State, tool: Tool, tmp_path: Path) -> None:
    torch.save(wrapped(sa50), tmp_path / "released.pth.tar")
    _, printed, _ = tool("model_converters/convert_checkpoint.py", tmp_path / "released.pth.tar", tmp_path / "out.pth")
    [line] = re.findall(r"^model = .*$", printed, re.MULTILINE)
    bases = [
        "init_cfg=None",
        "init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')",
        "style='pytorch'",
    ]
    for base in [*bases, "init_cfg=[dict(type='Kaiming', layer='Conv2d')]"]:
        (tmp_path / "base.py").write_text(f"model = dict(backbone=dict(type='ResNet', depth=50, {base}))\n")
        (tmp_path / "mine.py").write_text(f"_base_ = './base.py'\n{line}\n")
        backbone = Config.fromfile(tmp_path / "mine.py").model.backbone
        model: Any = MODELS.build(backbone)
        model.init_weights()
        assert torch.equal(model.layer4[2].sa.sweight, sa50["layer4.2.sa.sweight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_it_writes_loads_through_init_cfg(suffix: str, sa50: State, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    write(target, convert_tensors(sa50, "made up").whole())
    cfg = dict(type="Pretrained", prefix="backbone.", checkpoint=str(target))
    model: Any = MODELS.build(dict(type="SAResNet", depth=50, init_cfg=cfg))
    model.init_weights()
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in sa50.items() if not key.startswith("fc."))


class Harmful:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def half(state: State) -> State:
    return dict(list(state.items())[: len(state) // 2])


def detector(state: State) -> State:
    return as_mmdetection(state) | {"rpn_head.rpn_conv.weight": torch.zeros(2)}


def twice(state: State) -> State:
    return state | {f"module.{key}": value for key, value in state.items()}


def narrow(state: State) -> State:
    return state | {"layer3.0.conv2.weight": torch.zeros(256, 8, 3, 3)}


def expanded(state: State) -> State:
    return state | {"conv1.weight": torch.zeros(1).expand(64, 3, 7, 7)}


BAD: list[tuple[str, Callable[[State], Any], str]] = [
    ("half", half, "perhaps some of the keys are missing"),
    ("some", lambda s: {k: v for k, v in s.items() if "conv2" not in k}, "16 of .* missing: layer1.0.conv2.weight"),
    ("detector", detector, "holds a whole detector \\(rpn_head.rpn_conv.weight\\).*give the prefix 'backbone.'"),
    ("twice", twice, "holds conv1.weight twice, as conv1.weight and as module.conv1.weight"),
    ("one twice", lambda s: s | {"bam1.x": torch.ones(1), "layer1.bam.x": torch.ones(1)}, "holds layer1.bam.x twice"),
    ("float16", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, "dtype float32"),
    ("nan", lambda s: s | {"bn1.bias": torch.full((64,), torch.nan)}, "NaN or Inf, in bn1.bias"),
    ("resnext", narrow, "layer3.0.conv2.weight of shape \\(256, 8, 3, 3\\).*expected \\(256, 256, 3, 3\\)"),
    ("unexpected", lambda s: s | {"layer1.0.gate.weight": torch.ones(1)}, "unexpected keys: layer1.0.gate.weight"),
    ("two kinds", lambda s: s | {"layer1.0.eca.conv.weight": torch.ones(1, 1, 3)}, "several kinds of attention"),
    ("no resnet", lambda s: {"a.weight": torch.ones(1), "b": torch.ones(2)}, "no ResNet is in it.*a.weight, b"),
    ("empty", lambda s: {}, "holds no state dict: it is a dict of nothing"),
    ("list", lambda s: [torch.ones(1)], "holds no state dict: it is a list"),
    ("expanded", expanded, "conv1.weight of shape \\(64, 3, 7, 7\\) repeats the 1 numbers"),
    ("number", lambda s: {1: torch.ones(1), 2: torch.ones(1)}, "the key 1 is not a string"),
    ("sparse", lambda s: s | {"conv1.weight": torch.ones(2, 2).to_sparse()}, "more than weights .*_rebuild_sparse"),
    ("no sizes", lambda s: s | {"layer1.0.sa.cweight": torch.ones(4)}, "layer1.0.sa.cweight of shape \\(4,\\)"),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_does_not_fit_is_named(make: Callable[[State], Any], message: str, sa50: State, tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    torch.save(make(sa50), path)
    with pytest.raises(ValueError, match=message) as caught:
        convert(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def cut(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


def legacy_cut(path: Path, state: State) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])


def safetensors_cut(path: Path, state: State) -> None:
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


BAD_FILES: list[tuple[str, Callable[[Path, State], Any], str]] = [
    ("cut", cut, "is truncated"),
    ("legacy cut", legacy_cut, "is truncated"),
    ("safetensors cut", safetensors_cut, "is not a readable safetensors file"),
    ("empty", lambda path, state: path.write_bytes(b""), "the file is empty"),
    ("page", lambda path, state: path.write_text("<!DOCTYPE html><html>sign in"), "is a web page"),
    ("text", lambda path, state: path.write_text("conv1.weight 0.1 0.2"), "is not a file of weights"),
    (
        "code",
        lambda path, state: torch.save(dict(state, x=Harmful(path.parent / "run")), path),
        "refused and was not",
    ),
]


@pytest.mark.parametrize(("make", "message"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES])
def test_files_that_are_none_leave_the_target_untouched(
    make: Callable[[Path, State], Any], message: str, sa50: State, tool: Tool, tmp_path: Path
) -> None:
    source, target = tmp_path / "bad.pth", tmp_path / "out.pth"
    make(source, sa50)
    target.write_bytes(b"as it was")
    status, _, errors = tool("model_converters/convert_checkpoint.py", source, target)
    assert status != 0
    assert re.search(f"{re.escape(str(source))}.*{message}", errors)
    assert len(errors.strip().splitlines()) == 1
    assert target.read_bytes() == b"as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth", "out.pth"]


def test_what_is_asked_for_is_checked(sa50: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds weights with attention 'sa', expected 'se'"):
        convert_tensors(sa50, "x", attention="se")
    with pytest.raises(ValueError, match="holds a ResNet-50, expected a ResNet-101"):
        convert_tensors(sa50, "x", depth="101")
    with pytest.raises(ValueError, match=r"no key begins with the prefix 'encoder\.'"):
        convert_tensors(sa50, "x", prefix="encoder.")
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert(tmp_path / "none.pth")
    halves = {key: value.half() if value.is_floating_point() else value for key, value in sa50.items()}
    widened = convert_tensors(halves, "x", dtype="float32").state
    assert torch.equal(widened["conv1.weight"], sa50["conv1.weight"].half().float())
    assert convert_tensors(detector(sa50), "x", prefix="backbone.").unused == ["rpn_head.rpn_conv.weight"]


def test_a_full_disk_leaves_nothing(sa50: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(value: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"cannot be written.*No space left"):
        write(tmp_path / "out.pth", sa50)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="does not exist: make it first"):
        write(tmp_path / "none" / "out.pth", sa50)


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_end_in_a_sentence() -> None:
    # More of them: python tests/helpers/fuzz_checkpoints.py 10000
    answers = fuzz(400)
    assert len(answers) > 5
    assert answers["peak memory, MiB"] < 8000


def test_the_readmes_command_hands_pretraining_to_a_detector(sa50: State, tmp_path: Path) -> None:
    """As MMPretrain saves it: backbone. and head.fc., and more beside the weights."""
    state = {f"backbone.{key}": value for key, value in sa50.items() if not key.startswith("fc.")}
    torch.save(dict(state_dict=state, meta=dict(epoch=100)), tmp_path / "epoch_100.pth")
    cfg = Config.fromfile(REPOSITORY / "configs" / "faster_rcnn" / "faster-rcnn_sa-r50_fpn_1x_coco.py")
    options = dict(type="Pretrained", prefix="backbone.", checkpoint=str(tmp_path / "epoch_100.pth"))
    cfg.merge_from_dict({f"model.backbone.init_cfg.{key}": value for key, value in options.items()})
    backbone: Any = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    own = backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in sa50.items() if not key.startswith("fc."))
