"""Start a ResNet with attention from a plain ResNet's weights, computing exactly the plain ResNet's function."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from sa_mmdet.checkpoints import tensors_of
from sa_mmdet.checkpoints.resnet_names import blocks_of, depth_of, sort_names
from sa_mmdet.insertion import inserted
from sa_mmdet.messages import listed, one_line
from sa_mmdet.registry import register
from sa_mmdet.untrusted import RefusedFileError, literal_config

from .exact_start import attention_positions, layers_after_stages, plugin_positions, undo_attention

_UNEXPECTED = "unexpected keys"
_PRETRAINED = "init_cfg=dict(type='Pretrained', ...)"


@register(WEIGHT_INITIALIZERS)
class ResNetPretrained:
    """Load a plain ResNet's checkpoint so that attention does not change the function at the first step.

    See :mod:`sa_mmdet.backbones.exact_start` for how. Takes the names that torchvision, MMDetection, MMPretrain and
    timm use, whole classifiers and detectors, and ``module.`` prefixes. A checkpoint that does not fit is refused
    before anything is changed. Works for every backbone with ResNet's names: :class:`sa_mmdet.backbones.SAResNet`, and
    MMDetection's ResNet with or without plugins.

    Args:
        checkpoint: A file, a URL, or a name such as 'torchvision://resnet50'.
        prefix: The prefix of the backbone's keys, such as 'backbone.'; None to find it in the keys.
        map_location: The device on which :func:`torch.load` puts the tensors.
        check_style: Whether to refuse weights whose name or recorded config says that they are of another ``style``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The checkpoint cannot be read, has another depth or style, has attention, or lacks keys, or the
            attention has no such start; the error names what does not fit.
    """

    def __init__(self, checkpoint: str, prefix: str | None = None, map_location: str = "cpu", check_style: bool = True):
        self.checkpoint = checkpoint
        self.prefix = prefix
        self.map_location = map_location
        self.check_style = check_style

    def __call__(self, module: nn.Module) -> None:
        print_log(f"load plain ResNet weights from: {self.checkpoint}", logger="current")
        try:
            loaded = CheckpointLoader.load_checkpoint(self.checkpoint, self.map_location, logger="current")
        except FileNotFoundError:
            raise
        except Exception as error:  # torch.load can raise anything for a broken file
            raise ValueError(f"{self.checkpoint}: is not a readable checkpoint: {one_line(error)}") from error
        tensors = tensors_of(loaded, self.checkpoint)
        names = sort_names(tensors, self.checkpoint, self.prefix)
        if self.check_style:
            self._check_style(module, loaded, names.prefix)
        self._load(module, {name: tensors[key] for name, key in names.backbone.items()})
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=f"{type(self).__name__}: load from {self.checkpoint}")

    def _check_style(self, module: nn.Module, loaded: Any, prefix: str) -> None:
        """Refuse a checkpoint whose name or recorded config says that its strides are in other convolutions.

        Styles 'pytorch' and 'caffe' differ in which convolution of a bottleneck has the stride, which no tensor shows.
        """
        bottleneck, _ = blocks_of(module.state_dict())
        expected, found = getattr(module, "style", None), _style_of(self.checkpoint, loaded, prefix)
        if bottleneck and expected is not None and found is not None and found != expected:
            raise ValueError(
                f"{self.checkpoint}: weights of style {found!r}, the backbone has style={expected!r}: set "
                f"style={found!r} (and the mean, std and colour order that belong to it), or name other weights; if "
                "the name or the recorded config misleads, set check_style=False beside checkpoint"
            )

    def _load(self, module: nn.Module, source: dict[str, Tensor]) -> None:
        """Compare the checkpoint with the module, report what does not fit, undo what attention does, and load."""
        own = module.state_dict()
        self._check_depth(own, source)
        self._check_stages(own)
        plugins = {id(plugin) for position in plugin_positions(module) for plugin in position.plugins}
        exempt = tuple(f"{name}." for name, submodule in module.named_modules() if id(submodule) in plugins)
        exempt += tuple(layer.weights for layer in inserted(module))
        self._report(module, _compare(module, own, source, exempt))
        state = {key: source[key].to(own[key]) for key in own if key in source and not key.startswith(exempt)}
        undo_attention(attention_positions(module), state)
        # MMEngine lets the children initialise themselves after all initialisers but its own Pretrained; a deformable
        # convolution then overwrites what has been loaded. So they do it now.
        child: Any
        for child in module.children():
            if hasattr(child, "init_weights") and not getattr(child, "is_init", False):
                child.init_weights()
        module.load_state_dict(state, strict=False)

    def _check_depth(self, own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
        found, expected = depth_of(source), depth_of(own)
        if found != expected and None not in (found, expected):
            raise ValueError(
                f"{self.checkpoint}: weights of a ResNet-{found} for a ResNet-{expected}: name weights of that depth, "
                "or change the backbone's depth"
            )

    def _check_stages(self, own: Mapping[str, Tensor]) -> None:
        after_stages = layers_after_stages(own)
        if after_stages:
            raise ValueError(
                f"{self.checkpoint}: {after_stages[0]} belongs to a layer after a stage, which has no values that keep "
                f"a plain ResNet's function: load weights that include this layer by {_PRETRAINED}"
            )

    def _report(self, module: nn.Module, problems: Mapping[str, list[str]]) -> None:
        for problem, keys in problems.items():
            if keys:
                hint = f"; weights with attention load by {_PRETRAINED}" if problem == _UNEXPECTED else ""
                raise ValueError(
                    f"{self.checkpoint}: does not fit {type(module).__name__}: {problem}: {listed(keys)}{hint}"
                )


def _style_of(checkpoint: str, loaded: Any, prefix: str) -> str | None:
    """The style of a checkpoint's network by the config in it or by its name, or None if neither tells."""
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if isinstance(text, str):
        with contextlib.suppress(RefusedFileError):
            entry: Any = literal_config(text, checkpoint).get("model")
            for part in (prefix.strip(".") or "backbone").split("."):
                entry = entry.get(part) if isinstance(entry, Mapping) else None
            if isinstance(entry, Mapping):
                return str(entry.get("style", "pytorch"))  # which is the default of ResNet
    if re.match(r"resnet\d+_(caffe|msra)", checkpoint.rpartition("/")[2]):  # names of OpenMMLab's files
        return "caffe"
    return "pytorch" if checkpoint.startswith(("torchvision://", "modelzoo://")) else None


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
