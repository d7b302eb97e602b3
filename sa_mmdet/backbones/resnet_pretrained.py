"""Start a ResNet with attention from a plain ResNet's weights, at exactly the plain ResNet's function."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sa_mmdet.attention import Attention
from sa_mmdet.checkpoints import tensors_of
from sa_mmdet.checkpoints.resnet_names import depth_of, sort_names
from sa_mmdet.messages import listed, one_line

_UNEXPECTED = "unexpected keys"
_WITH_ATTENTION = "; weights with attention load through init_cfg=dict(type='Pretrained', ...)"


@WEIGHT_INITIALIZERS.register_module()
class ResNetPretrained:
    """Load a plain ResNet's checkpoint so that attention changes nothing at the first step.

    Attention at its initial values still scales its input by a constant gate and, in the case of shuffle attention,
    moves its channels. Both are undone in the convolution and the batch norm before it: their rows are permuted, and
    the batch norm's weight and bias are divided by the gate. The backbone then computes the plain ResNet's function.

    Takes the names that torchvision, MMDetection, MMPretrain and timm use, whole classifiers and detectors, and
    ``module.`` prefixes. A checkpoint that does not fit is refused before anything is changed. Works for every
    backbone with ResNet's names: :class:`sa_mmdet.backbones.SAResNet`, and MMDetection's ResNet with or without
    plugins.

    Args:
        checkpoint: A file, a URL, or a name such as 'torchvision://resnet50'.
        prefix: The prefix of the backbone's keys, such as 'backbone.'; found in the keys if None.
        map_location: Where :func:`torch.load` puts the tensors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint cannot be read, has another depth or style, has attention, or lacks keys; the error
            names what does not fit.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None, map_location: str = "cpu"):
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location

    def __call__(self, module: nn.Module) -> None:
        print_log(f"load plain ResNet weights from: {self.checkpoint}", logger="current")
        try:
            loaded = CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location, logger="current")
        except FileNotFoundError:
            raise
        except Exception as error:  # a broken file makes torch.load raise anything
            raise ValueError(f"{self.checkpoint}: is not a readable checkpoint: {one_line(error)}") from error
        self._check_style(module, loaded)
        tensors = tensors_of(loaded, self.checkpoint)
        names = sort_names(tensors, self.checkpoint, self.prefix)
        self._load(module, {name: tensors[key] for name, key in names.backbone.items()})
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=f"{type(self).__name__}: load from {self.checkpoint}")

    def _check_style(self, module: nn.Module, loaded: Any) -> None:
        """Refuse a checkpoint whose name or recorded config says that its strides are in another convolution.

        Styles 'pytorch' and 'caffe' differ in which convolution of a block has the stride, which no tensor shows.
        """
        expected = getattr(module, "style", None)
        text = self.checkpoint
        if isinstance(loaded, Mapping) and isinstance(loaded.get("meta"), Mapping):
            recorded = re.search(r"\bstyle\s*[=:]\s*['\"](\w+)['\"]", str(loaded["meta"].get("cfg", "")))
            found = recorded.group(1) if recorded else None
        else:
            found = None
        if found is None and re.search(r"caffe|msra|detectron/", text):
            found = "caffe"
        elif found is None and text.startswith(("torchvision://", "modelzoo://")):
            found = "pytorch"
        if expected is not None and found is not None and found != expected:
            raise ValueError(
                f"{self.checkpoint}: weights of style {found!r}, the backbone has style={expected!r}: set "
                f"style={found!r} (and the mean, std and colour order that belong to it), or name other weights"
            )

    def _load(self, module: nn.Module, source: dict[str, Tensor]) -> None:
        """Compare the checkpoint with the module, report what does not fit, undo what attention does, and load."""
        own = module.state_dict()
        self._check_depth(own, source)
        self._check_stages(own)
        exempt = tuple(f"{name}." for name in _plugin_names(module))
        for what, keys in _compare(module, own, source, exempt).items():
            if keys:
                hint = _WITH_ATTENTION if what == _UNEXPECTED else ""
                fit = f"{self.checkpoint}: does not fit {type(module).__name__}"
                raise ValueError(f"{fit}: {what}: {listed(keys)}{hint}")
        state = {key: source[key].to(own[key]) for key in own if key in source and not key.startswith(exempt)}
        _undo_attention(module, state)
        module.load_state_dict(state, strict=False)

    def _check_depth(self, own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        found, expected = depth_of(source), depth_of(own)
        if found != expected and None not in (found, expected):
            raise ValueError(
                f"{self.checkpoint}: weights of a ResNet-{found} for a ResNet-{expected}: name weights of that depth, "
                "or change the backbone's depth"
            )

    def _check_stages(self, own: Mapping[str, Tensor]) -> None:
        after_stages = [key for key in own if re.match(r"layer\d\.[^\d]", key)]
        if after_stages:
            raise ValueError(
                f"{self.checkpoint}: {after_stages[0]} belongs to attention after a stage, which has no values that "
                "leave a plain ResNet's function as it is: load weights that have this attention through "
                "init_cfg=dict(type='Pretrained', ...)"
            )


def _compare(
    module: nn.Module, own: Mapping[str, Tensor], source: Mapping[str, Tensor], exempt: tuple[str, ...]
) -> dict[str, list[str]]:
    """What keeps a checkpoint from fitting: for each kind of problem, the keys that have it.

    Args:
        module: The backbone.
        own: Its state.
        source: The checkpoint's backbone, under the same names.
        exempt: Prefixes of layers that a plain ResNet does not have.
    """
    expected = [
        key
        for key in own
        if not key.startswith(exempt) and "conv_offset" not in key and not key.endswith("num_batches_tracked")
    ]
    absent_stages = tuple(f"layer{stage}." for stage in range(1, 5) if not hasattr(module, f"layer{stage}"))
    unexpected = [
        key
        for key in source
        if (key not in own or key.startswith(exempt))
        and not key.endswith("num_batches_tracked")
        and not (absent_stages and key.startswith(absent_stages))
    ]
    common = [key for key in expected if key in source]
    shapes = [(key, tuple(source[key].shape), tuple(own[key].shape)) for key in common]
    not_finite = [key for key in common if source[key].is_floating_point() and not source[key].isfinite().all()]
    return {
        "keys are missing": [key for key in expected if key not in source],
        _UNEXPECTED: unexpected,
        "tensors have another shape": [
            f"{key} {found} for {wanted}" for key, found, wanted in shapes if found != wanted
        ],
        "tensors hold NaN or Inf": not_finite,
    }


def _undo_attention(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Undo in ``state`` what the module's attention does at its first values; nothing is changed on an error."""
    positions = [
        _AttentionPosition(f"{name}.", block, *position)
        for name, block in module.named_modules()
        for position in plugin_positions(block)
        if any(isinstance(plugin, Attention) for plugin in position[-1])
    ]
    for position in positions:
        position.check()
    for position in positions:
        position.undo(state)


def plugin_positions(block: nn.Module) -> Iterator[tuple[str, str, list[nn.Module]]]:
    """For each position of a block that has plugins: its convolution's name, its norm's, and the plugins in order."""
    for number in (1, 2, 3):
        names = getattr(block, f"after_conv{number}_plugin_names", [])
        if names:
            norm_name = getattr(block, f"norm{number}_name")
            yield f"conv{number}", norm_name, [getattr(block, name) for name in names]


def _plugin_names(module: nn.Module) -> list[str]:
    plugins = {id(plugin) for block in module.modules() for *_, found in plugin_positions(block) for plugin in found}
    return [name for name, submodule in module.named_modules() if id(submodule) in plugins]


@dataclasses.dataclass
class _AttentionPosition:
    """Where attention is: after which convolution and norm of which block."""

    prefix: str
    block: nn.Module
    conv_name: str
    norm_name: str
    plugins: list[nn.Module]

    def check(self) -> None:
        """Refuse what the start cannot be carried through."""
        conv, norm = getattr(self.block, self.conv_name), getattr(self.block, self.norm_name)
        where, way_out = f"after {self.prefix}{self.conv_name}", "use init_cfg=dict(type='Pretrained', ...)"
        later = [type(plugin).__name__ for plugin in self.plugins[1:] if isinstance(plugin, Attention)]
        if later:
            raise ValueError(f"{where} {later[0]} follows another plugin: put it first, or {way_out}")
        if not isinstance(norm, _BatchNorm) or not norm.affine or getattr(conv, "groups", 1) != 1:
            raise ValueError(
                f"{where} the start of {type(self.plugins[0]).__name__} needs an ungrouped convolution and an affine "
                f"batch norm, found {type(conv).__name__} and {type(norm).__name__}: {way_out}"
            )

    def undo(self, state: dict[str, Tensor]) -> None:
        """Permute and scale, in ``state``, the convolution and the norm before the attention."""
        attention: Any = self.plugins[0]
        destination, gate = attention.start_exactly()
        norm_fields = ("weight", "bias", "running_mean", "running_var")
        for key in (f"{self.conv_name}.weight", *(f"{self.norm_name}.{field}" for field in norm_fields)):
            tensor = state[self.prefix + key]
            state[self.prefix + key] = tensor[destination.to(tensor.device)]
        for field in ("weight", "bias"):
            state[f"{self.prefix}{self.norm_name}.{field}"] /= gate
