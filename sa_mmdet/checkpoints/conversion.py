"""Released weights under the names and in the form that MMDetection's backbones take, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor

from sa_mmdet.compat.old_torch import shapes_only
from sa_mmdet.messages import listed, one_line

from . import files
from .recognition import recognise
from .resnet_names import detector_keys, find_prefix, released_name, sort_names


@dataclass
class Converted:
    """A backbone's weights under MMDetection's names, and what is known about them."""

    state: dict[str, Tensor]
    backbone: dict[str, Any]  # its config
    attention: str
    sources: dict[str, str]  # the key in the file for each name in ``state`` and ``head``
    head: dict[str, Tensor] = field(default_factory=dict)  # a classifier's last layer: weight, bias
    added: list[str] = field(default_factory=list)  # names that the file lacks
    unused: list[str] = field(default_factory=list)  # keys of the file that were not used

    def whole(self) -> dict[str, Tensor]:
        """The weights under the names of MMDetection's detectors and MMPretrain's classifiers."""
        state = {f"backbone.{key}": value for key, value in self.state.items()}
        return state | {f"head.fc.{key}": value for key, value in self.head.items()}


def convert(
    path: str | Path, attention: str = "auto", depth: str = "auto", prefix: str | None = None, dtype: str | None = None
) -> Converted:
    """Read the weights of a ResNet with or without attention, whoever released them.

    Recognises the depth, the attention and its options by names and shapes. Takes the names of the modules' own
    authors, torchvision, timm, MMPretrain and MMDetection, ``module.`` prefixes, and dicts that hold a state dict.

    Args:
        path: The file, see :func:`sa_mmdet.checkpoints.read`.
        attention: What the file must hold: 'auto' for anything, or one of :func:`sa_mmdet.checkpoints.known_attention`.
        depth: The depth that it must have: 'auto' for any, or a number of layers.
        prefix: The prefix of the backbone's keys; found in the keys if None. Must be given for a whole detector.
        dtype: 'float32' widens half-precision weights, which are refused otherwise.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or holds something else; the message is one line, names the file and says
            what does not fit.
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
    """As :func:`convert`, from a state dict; errors name ``path``."""
    if prefix is None:
        _refuse_detector(tensors, path)
    names = sort_names(tensors, path, prefix)
    sources, head, unused = dict(names.backbone), {}, list(names.other)
    if set(names.classifier) == {"weight", "bias"}:
        head = {name: _in_float32(tensors[key], key, dtype, path) for name, key in names.classifier.items()}
        sources |= {f"head.fc.{name}": key for name, key in names.classifier.items()}
    else:
        unused += names.classifier.values()
    state = {name: _in_float32(tensors[key], name, dtype, path) for name, key in names.backbone.items()}
    found, backbone = recognise(state, path)
    if attention not in ("auto", found):
        raise ValueError(f"{path}: holds weights with attention {found!r}, expected {attention!r}")
    if str(depth) not in ("auto", str(backbone["depth"])):
        raise ValueError(f"{path}: holds a ResNet-{backbone['depth']}, expected a ResNet-{depth}")
    state, added = _fitted(state, backbone, path)
    files.check_finite(state, path)
    return Converted(state, backbone, found, sources, head, added, unused)


def released(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give a backbone's weights the form in which the modules' authors publish theirs.

    Args:
        state: Under MMDetection's names, without prefix.

    Returns:
        A dict with a state dict, whose names begin with ``module.``.
    """
    return dict(state_dict={f"module.{released_name(key)}": value for key, value in state.items()})


def _refuse_detector(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    detector = detector_keys(tensors)
    if detector:
        prefix = find_prefix([key.removeprefix("module.") for key in tensors], path)
        raise ValueError(
            f"{path}: holds a whole detector ({listed(detector)}): to take its backbone give the prefix {prefix!r}"
        )


def _in_float32(tensor: Tensor, name: str, dtype: str | None, path: str | Path) -> Tensor:
    if tensor.dtype not in (torch.float16, torch.bfloat16):
        return tensor
    if dtype != "float32":
        raise ValueError(
            f"{path}: {name} is in {tensor.dtype}, which is too coarse to train on: give dtype float32, which widens "
            "the weights exactly"
        )
    return tensor.float()


def _fitted(
    state: Mapping[str, Tensor], backbone: dict[str, Any], path: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """The state as the backbone of that config has it, and the names that had to be added."""
    try:
        with shapes_only():
            own = MODELS.build(backbone).state_dict()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its shapes do not make a ResNet with attention: {one_line(error)}") from error
    # Files from before PyTorch 0.4.1 have no such counters.
    added = [key for key in own if key.endswith("num_batches_tracked") and key not in state]
    complete = {**state, **{key: torch.zeros((), dtype=torch.int64) for key in added}}
    missing = [key for key in own if key not in complete]
    unexpected = [key for key in complete if key not in own]
    what = f"{path}: recognised as {backbone['type']} of depth {backbone['depth']}, but does not fit it: "
    if missing:
        raise ValueError(f"{what}{len(missing)} of {len(own)} keys are missing: {listed(missing)}")
    if unexpected:
        raise ValueError(f"{what}unexpected keys: {listed(unexpected)}")
    fitted = {}
    for key, value in own.items():
        tensor = complete[key]
        if tensor.dim() == 4 and value.dim() == 2 and tuple(tensor.shape[2:]) == (1, 1):
            tensor = tensor.flatten(1)  # a 1 x 1 convolution where this package has a linear layer
        if tensor.shape != value.shape or tensor.is_floating_point() != value.is_floating_point():
            raise ValueError(
                f"{what}{key} of shape {tuple(tensor.shape)} and {tensor.dtype}, expected {tuple(value.shape)} and "
                f"{value.dtype}"
            )
        fitted[key] = tensor
    return fitted, added
