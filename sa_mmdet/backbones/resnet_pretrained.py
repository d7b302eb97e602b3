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

# Whether the blocks are bottlenecks, and how many each stage has.
DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
# Heads of classifiers and of detectors; everything else that is left over makes a checkpoint unfit.
_NOT_BACKBONE = re.compile(r"(fc|head|classifier|neck|rpn_head|roi_head|bbox_head|mask_head|data_preprocessor)\.")
_SHOWN = 4  # keys that an error names


@WEIGHT_INITIALIZERS.register_module()
class ResNetPretrained:
    """Load a plain ResNet's checkpoint so that attention changes nothing at the first step.

    Attention at its initial values still scales its input by a constant gate and, in the case of shuffle attention,
    moves its channels. Both are undone in the convolution and the batch norm before it: their rows are permuted, and
    the batch norm's weight and bias divided by the gate. The backbone then computes the plain ResNet's function.

    Takes the namings of torchvision, MMDetection, MMPretrain and timm, whole classifiers and detectors, and
    ``module.`` prefixes. A checkpoint that does not fit is refused before anything is changed. Works for every
    backbone with ResNet's names: :class:`sa_mmdet.backbones.SAResNet`, and MMDetection's ResNet with or without
    plugins.

    Args:
        checkpoint: File, URL, or name such as 'torchvision://resnet50'.
        prefix: Prefix of the backbone's keys, such as 'backbone.'; found by itself if None.
        map_location: Where :func:`torch.load` puts the tensors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The checkpoint cannot be read, or is another depth's, another style's, one with attention, or
            lacks keys; the error names what does not fit.
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
        except Exception as error:  # whatever a broken file makes of torch.load
            raise ValueError(f"{self.checkpoint}: not a readable checkpoint: {error}") from error
        self._check_style(module, loaded)
        self._load(module, self._backbone_state(loaded))
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=f"{type(self).__name__}: load from {self.checkpoint}")

    def _check_style(self, module: nn.Module, loaded: Any) -> None:
        """Refuse a checkpoint whose name or recorded config tells that its strides stand elsewhere.

        Styles 'pytorch' and 'caffe' differ in the place of a stride, which no tensor shows.
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

    def _backbone_state(self, loaded: Any) -> dict[str, Tensor]:
        """The backbone's tensors under MMDetection's names."""
        state = loaded
        for wrapper in ("state_dict", "model"):
            if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
                state = state[wrapper]
        if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"{self.checkpoint}: holds no state dict")
        tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
        prefix = self.prefix
        if prefix is None:
            prefix = "backbone." if any(key.startswith("backbone.layer1.") for key in tensors) else ""
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if not tensors:
            raise ValueError(f"{self.checkpoint}: no key begins with the prefix {prefix!r}")
        if "conv1.0.weight" in tensors:  # timm's name for the deep stem
            tensors = {re.sub(r"^bn1\.", "stem.7.", re.sub(r"^conv1\.", "stem.", k)): v for k, v in tensors.items()}
        return {key: value for key, value in tensors.items() if not _NOT_BACKBONE.match(key)}

    def _load(self, module: nn.Module, source: dict[str, Tensor]) -> None:
        own = module.state_dict()
        self._check_depth(own, source)
        behind = [key for key in own if re.match(r"layer\d\.[^\d]", key)]
        if behind:
            raise ValueError(
                f"{self.checkpoint}: {behind[0]} stands behind a stage, where attention has no values that leave a "
                "plain ResNet's function as it is: load weights with it through init_cfg=dict(type='Pretrained', ...)"
            )
        exempt = tuple(f"{name}." for name in _plugin_names(module))
        expected = [
            key
            for key in own
            if not key.startswith(exempt) and "conv_offset" not in key and not key.endswith("num_batches_tracked")
        ]
        absent_stages = tuple(f"layer{stage}." for stage in range(1, 5) if not hasattr(module, f"layer{stage}"))
        problems = [
            ("keys are missing", [key for key in expected if key not in source]),
            (
                "keys belong to no plain ResNet's layer",
                [
                    key
                    for key in source
                    if (key not in own or key.startswith(exempt))
                    and not key.endswith("num_batches_tracked")
                    and not (absent_stages and key.startswith(absent_stages))
                ],
            ),
            (
                "tensors have another shape",
                [
                    f"{key} {tuple(source[key].shape)} for {tuple(own[key].shape)}"
                    for key in expected
                    if key in source and source[key].shape != own[key].shape
                ],
            ),
            (
                "tensors hold NaN or Inf",
                [
                    key
                    for key in expected
                    if key in source and source[key].is_floating_point() and not source[key].isfinite().all()
                ],
            ),
        ]
        for what, keys in problems:
            if keys:
                hint = (
                    "; weights with attention load through init_cfg=dict(type='Pretrained', ...)"
                    if what == "keys belong to no plain ResNet's layer"
                    else ""
                )
                more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                raise ValueError(
                    f"{self.checkpoint}: does not fit {type(module).__name__}: {what}: "
                    f"{', '.join(keys[:_SHOWN])}{more}{hint}"
                )

        state = {key: source[key].to(own[key]) for key in own if key in source and not key.startswith(exempt)}
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
        module.load_state_dict(state, strict=False)

    def _check_depth(self, own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        depths = [DEPTHS.get(blocks_of(state)) for state in (source, own)]
        if depths[0] != depths[1] and None not in depths:
            raise ValueError(
                f"{self.checkpoint}: weights of a ResNet-{depths[0]} for a ResNet-{depths[1]}: name weights of that "
                "depth, or change the backbone's depth"
            )


def blocks_of(state: Mapping[str, Tensor]) -> tuple[bool, tuple[int, ...]]:
    """Whether a state dict's blocks are bottlenecks, and how many each stage has."""
    blocks = {match.groups() for key in state if (match := re.match(r"layer(\d)\.(\d+)\.", key))}
    return (
        "layer1.0.conv3.weight" in state,
        tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(1, 5)),
    )


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
    """A place of attention: behind which convolution and norm of which block."""

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
