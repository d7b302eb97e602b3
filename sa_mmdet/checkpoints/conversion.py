"""Released weights under the names and in the form that MMDetection's backbones take, and back."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor

from sa_mmdet.backbones.resnet_pretrained import DEPTHS, blocks_of
from sa_mmdet.compat.devices import shapes_alone

from . import files

# Every name of a layer that released files have, as ours; a 1 x 1 convolution's weight where we have a linear layer's
# is reshaped.
_RENAMINGS = [
    (r"^bam([123])\.", r"layer\1.bam."),
    (r"\.se\.fc1\.", ".se.fc.0."),  # timm
    (r"\.se\.fc2\.", ".se.fc.2."),
    (r"\.se\.conv\.", ".eca.conv."),
    (r"\.se_layer\.conv1\.conv\.", ".se.fc.0."),  # MMPretrain
    (r"\.se_layer\.conv2\.conv\.", ".se.fc.2."),
]
_TIMM_DEEP_STEM = [(r"^conv1\.", "stem."), (r"^bn1\.", "stem.7.")]
_HEAD = re.compile(r"^(?:head\.)?(?:fc|classifier|last_linear)\.(weight|bias)$")
_DETECTOR = re.compile(r"^(neck|rpn_head|roi_head|bbox_head|mask_head|panoptic_head|query_head|decoder)\.")
_ANCHOR = re.compile(r"^(.*)layer1\.0\.conv1\.weight$")
_SHOWN = 4  # keys that an error names
ATTENTIONS = ("none", "sa", "se", "eca", "sge", "cbam", "bam")


@dataclass
class Converted:
    """A backbone's weights under MMDetection's names, and what is known of them."""

    state: dict[str, Tensor]
    backbone: dict[str, Any]  # its config
    attention: str
    sources: dict[str, str]  # the name in the file of each of ``state`` and ``head``
    head: dict[str, Tensor] = field(default_factory=dict)  # a classifier's last layer: weight, bias
    added: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def whole(self) -> dict[str, Tensor]:
        """Under the names of MMDetection's detectors and MMPretrain's classifiers."""
        state = {f"backbone.{key}": value for key, value in self.state.items()}
        return state | {f"head.fc.{key}": value for key, value in self.head.items()}


def convert(
    path: str | Path, attention: str = "auto", depth: str = "auto", prefix: str | None = None, dtype: str | None = None
) -> Converted:
    """Read the weights of a ResNet with or without attention, whoever released them.

    Recognises the depth, the attention and its options off names and shapes; takes the namings of the modules' own
    authors, torchvision, timm, MMPretrain and MMDetection, ``module.`` prefixes, and dicts that hold a state dict.

    Args:
        path: The file, see :func:`sa_mmdet.checkpoints.files.read`.
        attention: What the file must hold: 'auto' for anything, or one of :data:`ATTENTIONS`.
        depth: What it must be: 'auto' or a number of layers.
        prefix: Of the backbone's keys; found by itself if None. A detector's backbone needs it said.
        dtype: 'float32' widens half-precision weights, which are refused otherwise.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file or holds something else; the message, one line, names the file and what does
            not fit.
    """
    return convert_tensors(files.tensors_of(files.read(path), path), path, attention, depth, prefix, dtype)


def convert_tensors(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    attention: str = "auto",
    depth: str = "auto",
    prefix: str | None = None,
    dtype: str | None = None,
) -> Converted:
    """As :func:`convert`, from a state dict; the path is what errors name."""
    prefix = _prefix(tensors, path) if prefix is None else prefix
    inner = {key: key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    if not inner:
        raise ValueError(f"{path}: no key begins with the prefix {prefix!r}; the first keys: {_first(tensors)}")
    deep_stem = "conv1.0.weight" in inner.values()
    state: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    left_over: list[str] = []
    # A head stands outside the prefix where that is 'backbone.', and behind it otherwise.
    outside = prefix.removesuffix("backbone.")
    for key, tensor in tensors.items():
        match = _HEAD.match(key.removeprefix(outside)) if key.startswith(outside) else None
        if match:
            target, name = head, match.group(1)
        elif key in inner:
            target, name = state, _renamed(inner[key], deep_stem)
        else:
            left_over.append(key)
            continue
        label = name if target is state else f"head.fc.{name}"
        if label in sources:
            raise ValueError(f"{path}: holds {label} twice, as {sources[label]} and as {key}")
        target[name], sources[label] = tensor, key
    state = {key: _without_halves(key, tensor, dtype, path) for key, tensor in state.items()}
    head = {key: _without_halves(f"fc.{key}", tensor, dtype, path) for key, tensor in head.items()}
    if set(head) != {"weight", "bias"}:
        left_over += [sources.pop(f"head.fc.{name}") for name in head]
        head = {}
    found, backbone = _recognise(state, path)
    if attention not in ("auto", found):
        raise ValueError(f"{path}: holds weights of attention {found!r}, asked for is {attention!r}")
    if str(depth) not in ("auto", str(backbone["depth"])):
        raise ValueError(f"{path}: holds a ResNet-{backbone['depth']}, asked for is ResNet-{depth}")
    state, added = _fitted(state, backbone, path)
    files.check_finite(state, path)
    return Converted(state, backbone, found, sources, head, added, left_over)


def released(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A backbone's weights as the modules' authors publish theirs: a dict with a state dict under ``module.`` names."""
    names = {key: "module." + re.sub(r"^layer(\d)\.bam\.", r"bam\1.", key) for key in state}
    return dict(state_dict={names[key]: value for key, value in state.items()})


def digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def _first(keys: Any) -> str:
    keys = list(keys)
    return ", ".join(map(str, keys[:_SHOWN])) + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _prefix(tensors: Mapping[str, Tensor], path: str | Path) -> str:
    """What stands before a ResNet's names."""
    found = [match.group(1) for key in tensors if (match := _ANCHOR.match(key))]
    if not found:
        raise ValueError(
            f"{path}: no ResNet is in it: there is no layer1.0.conv1.weight; the first keys: {_first(tensors)}"
        )
    bare = {prefix.removeprefix("module.") for prefix in found}
    if len(found) > 1 and len(bare) > 1:
        raise ValueError(f"{path}: holds several ResNets: name the prefix of one, of {', '.join(map(repr, found))}")
    if len(found) > 1:
        key = "layer1.0.conv1.weight"
        raise ValueError(f"{path}: holds the same keys twice, as {found[0]}{key} and as {found[1]}{key}")
    detector = [key for key in tensors if _DETECTOR.match(key.removeprefix("module."))]
    if detector:
        raise ValueError(
            f"{path}: holds a whole detector ({_first(detector)}): to take its backbone say the prefix {found[0]!r}"
        )
    return found[0]


def _renamed(key: str, deep_stem: bool) -> str:
    for pattern, name in _RENAMINGS + (_TIMM_DEEP_STEM if deep_stem else []):
        key = re.sub(pattern, name, key)
    return key


def _without_halves(key: str, tensor: Tensor, dtype: str | None, path: str | Path) -> Tensor:
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    if dtype != "float32":
        raise ValueError(
            f"{path}: {key} is of {tensor.dtype}, in which a training would go on badly: ask for dtype float32, which "
            "widens the weights exactly"
        )
    return tensor.float()


def _recognise(state: Mapping[str, Tensor], path: str | Path) -> tuple[str, dict[str, Any]]:
    """The attention's name, and the backbone's config."""
    depth = DEPTHS.get(blocks_of(state))
    if depth is None:
        bottleneck, counts = blocks_of(state)
        raise ValueError(
            f"{path}: stages of {counts} {'bottlenecks' if bottleneck else 'basic blocks'} are no known ResNet's, half "
            f"of the keys are missing perhaps; known are {', '.join(map(str, DEPTHS.values()))}"
        )
    found: dict[str, set[int]] = {}
    for key in state:
        match = re.match(r"layer(\d)\.(?:\d+\.(sa|se|eca|sge|cbam)\.|(bam)\.)", key)
        if match:
            found.setdefault(match.group(2) or match.group(3), set()).add(int(match.group(1)))
    if len(found) > 1:
        raise ValueError(f"{path}: holds several kinds of attention, which no released ResNet has: {', '.join(found)}")
    shape: dict[str, Any] = dict(depth=depth)
    if "stem.0.weight" in state:
        shape["deep_stem"] = True
    if "layer1.0.downsample.2.weight" in state or "layer2.0.downsample.2.weight" in state:
        shape["avg_down"] = True
    if not found:
        return "none", dict(type="ResNet", **shape)
    [(name, stages)] = found.items()
    if name == "bam":
        options = _bam(_Shapes(state, path), 1)
        return name, dict(type="AttentionResNet", **shape, stage_attention=dict(type="BAM", **options))
    each = [_ATTENTIONS[name](_Shapes(state, path), stage) if stage in stages else None for stage in range(1, 5)]
    first = next(options for options in each if options is not None)
    flags = {} if len(stages) == 4 else dict(stage_with_attention=tuple(stage in stages for stage in range(1, 5)))
    if name == "sa":
        return name, dict(type="SAResNet", **shape, **first, **flags)
    layer = dict(type=_TYPES[name])
    if all(options in (None, first) for options in each):
        return name, dict(type="AttentionResNet", **shape, attention={**layer, **first}, **flags)
    layers = [None if options is None else {**layer, **options} for options in each]
    return name, dict(type="AttentionResNet", **shape, attention=layers)


class _Shapes:
    """Sizes read off a state dict's shapes."""

    def __init__(self, state: Mapping[str, Tensor], path: str | Path):
        self.state, self.path = state, path

    def __call__(self, key: str, axis: int) -> int:
        if key not in self.state:
            raise ValueError(f"{self.path}: {key} is missing")
        shape = tuple(self.state[key].shape)
        if len(shape) <= axis or shape[axis] < 1:
            raise ValueError(f"{self.path}: {key} of shape {shape} has no axis {axis} of one element or more")
        return shape[axis]

    def channels(self, stage: int) -> int:
        """Of the stage's blocks' output."""
        last = "conv3" if f"layer{stage}.0.conv3.weight" in self.state else "conv2"
        return self(f"layer{stage}.0.{last}.weight", 0)

    def ratio(self, stage: int, hidden: str) -> int:
        return max(1, self.channels(stage) // self(hidden, 0))


def _sa(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(groups=max(1, shapes.channels(stage) // (2 * shapes(f"layer{stage}.0.sa.cweight", 1))))


def _se(shapes: _Shapes, stage: int) -> dict[str, Any]:
    bias = f"layer{stage}.0.se.fc.0.bias" in shapes.state
    return dict(ratio=shapes.ratio(stage, f"layer{stage}.0.se.fc.0.weight"), bias=bias)


def _eca(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(kernel_size=shapes(f"layer{stage}.0.eca.conv.weight", 2))


def _sge(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(groups=shapes(f"layer{stage}.0.sge.weight", 1))


def _cbam(shapes: _Shapes, stage: int) -> dict[str, Any]:
    prefix = f"layer{stage}.0.cbam."
    ratio = shapes.ratio(stage, f"{prefix}ChannelGate.mlp.1.weight")
    return dict(ratio=ratio, kernel_size=shapes(f"{prefix}SpatialGate.spatial.conv.weight", 2))


def _bam(shapes: _Shapes, stage: int) -> dict[str, Any]:
    return dict(ratio=shapes.ratio(stage, f"layer{stage}.bam.channel_att.gate_c.gate_c_fc_0.weight"))


_ATTENTIONS: dict[str, Callable[[_Shapes, int], dict[str, Any]]] = dict(sa=_sa, se=_se, eca=_eca, sge=_sge, cbam=_cbam)
_TYPES = dict(se="SqueezeExcitation", eca="EfficientChannelAttention", sge="SpatialGroupEnhance", cbam="CBAM")


def _fitted(
    state: Mapping[str, Tensor], backbone: dict[str, Any], path: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The state as the backbone of that config has it, and what had to be added."""
    try:
        with shapes_alone():
            own = MODELS.build(backbone).state_dict()
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: its shapes are no ResNet's with attention: {' '.join(str(error).split())}"
        ) from error
    # Files of before torch 0.4.1 have no such counters.
    added = [key for key in own if key.endswith("num_batches_tracked") and key not in state]
    complete = {**state, **{key: torch.zeros((), dtype=torch.int64) for key in added}}
    missing = [key for key in own if key not in complete]
    strange = [key for key in complete if key not in own]
    what = f"{path}: recognised as {backbone['type']} of depth {backbone['depth']}, which it does not fit: "
    if missing:
        raise ValueError(f"{what}{len(missing)} of {len(own)} keys are missing: {_first(missing)}")
    if strange:
        raise ValueError(f"{what}keys belong to no layer of it: {_first(strange)}")
    fitted = {}
    for key, value in own.items():
        tensor = complete[key]
        if tensor.dim() == 4 and value.dim() == 2 and tuple(tensor.shape[2:]) == (1, 1):
            tensor = tensor.flatten(1)  # a 1 x 1 convolution as a linear layer
        if tensor.shape != value.shape or tensor.is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"{what}{key} of shape {tuple(tensor.shape)} and {tensor.dtype}, expected {tuple(value.shape)} and "
                f"{value.dtype}"
            )
        fitted[key] = tensor
    return fitted, added
