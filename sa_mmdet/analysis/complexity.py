"""Parameters and multiply-adds of detectors and backbones, by part, by the rules of MMEngine or of a paper."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.detectors.base import BaseDetector
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd, _MaxPoolNd

from sa_mmdet.attention import Attention
from sa_mmdet.compat.old_torch import shapes_only
from sa_mmdet.insertion.modules import Attending
from sa_mmdet.messages import one_line

from . import operators
from .detector_forward import MASKS, PROPOSALS, inner_detector, prepare

CONVENTIONS = ("mmengine", "paper", "senet")
DETECTOR_SHAPE = (800, 1280)  # height and width in pixels, as in the paper's Table 3
BACKBONE_SHAPE = (224, 224)  # as in its Table 2
CLASSES = 1000  # of the head that its Table 2 counts
_STRIDE = 32  # of the last stage


@dataclass
class Complexity:
    """The complexity of a model, in numbers of parameters, and of multiply-adds for one image."""

    parameters: int  # of the whole model
    trainable: int  # the parameters that are trained
    attention_parameters: int  # the parameters of all attention modules
    backbone: int  # multiply-adds without attention, like neck and heads
    neck: int
    heads: int
    attention: int  # multiply-adds of all attention modules
    not_counted: tuple[str, ...] = ()  # modules and operations whose multiply-adds are left out

    @property
    def total(self) -> int:
        """The multiply-adds of the whole model."""
        return self.backbone + self.neck + self.heads + self.attention


def analyze(
    cfg: dict[str, Any],
    shape: tuple[int, int] | None = None,
    convention: str = "mmengine",
    classes: int = CLASSES,
) -> Complexity:
    """Count a model's parameters and multiply-adds, without weights or data, on the CPU.

    Args:
        cfg: The config of a detector or of a backbone.
        shape: Height and width of the input in pixels; if None, 800 x 1280 for a detector and 224 x 224 for a backbone.
        convention: 'mmengine' counts by the rules of MMEngine's FlopAnalyzer. 'paper' counts by the rules of the
            tables in the SA-Net paper (arXiv 2102.00240): the multiply-adds of convolutions and linear layers, 2 per
            output element of a batch norm, 1 per output element of a ReLU, and 1 per input element of a pooling layer
            and of an attention module's own pooling. Deconvolutions are counted at their output's resolution;
            two-stage detectors have 81 classes, including the background, and their SE has no biases; a backbone has
            a linear head. The attributes of :class:`sa_mmdet.attention.Attention` say what differs between
            attention layers. 'senet' counts by the rules of the tables in the SENet article (arXiv 1709.01507): the
            multiply-adds of convolutions and linear layers, and 1 per element that a residual block adds to its
            identity; ``parameters`` includes the statistics of batch norms, which Caffe stores as such.
        classes: The number of classes of the head that a backbone has by the rules of 'paper' and 'senet'.

    A detector runs the forward that MMDetection's own get_flops.py counts, with 1000 proposals for box heads and 100
    for mask heads. ``not_counted`` of the result names the modules that it does not run, which are those that only
    training uses, and what inference computes outside of it.

    Raises:
        ValueError: The convention is unknown, the shape is too small, or the model cannot be built or run.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r} is unknown: choose one of {', '.join(CONVENTIONS)}")
    count = _RULES.get(convention)
    model = _built(cfg, only_shapes=count is not None)
    detector = isinstance(model, BaseDetector)
    height, width = shape or (DETECTOR_SHAPE if detector else BACKBONE_SHAPE)
    if min(height, width) < _STRIDE:
        raise ValueError(f"shape {height} x {width} is smaller than the backbone's stride: use {_STRIDE} or more")
    left_out = prepare(model, height, width) if detector else []
    wrapped: nn.Module = model if detector else _Classifier(model, classes) if count else _Bare(model)
    image = torch.zeros(1, 3, height, width, device=next(model.parameters()).device)
    try:
        counts, unused = _count_layers(wrapped, image, count) if count else operators.count(wrapped, image)
    except Exception as error:  # whatever another package's detector raises
        hint = ": use --convention mmengine" if count else ""
        name = type(model).__name__
        raise ValueError(f"{name} cannot be counted at {height} x {width}: {one_line(error, 200)}{hint}") from error
    found = replace(_by_part(wrapped, counts), not_counted=(*unused, *left_out))
    if convention == "senet":
        return replace(found, parameters=found.parameters + _statistics(model))
    return _as_paper_two_stage(found, model) if convention == "paper" and hasattr(model, "roi_head") else found


def _built(cfg: dict[str, Any], only_shapes: bool) -> Any:
    """The detector or backbone of a config, in evaluation mode."""
    cfg = ConfigDict(copy.deepcopy(dict(cfg)))
    _need_no_processes(cfg)
    if "teacher_ckpt" in cfg:  # distillation loads its teacher, which inference does not run
        cfg["teacher_ckpt"] = None
    try:
        # Shapes are enough for the papers' rules; MMEngine's counter traces the model, which needs values.
        with shapes_only() if only_shapes else nullcontext():
            model = revert_sync_batchnorm(MODELS.build(cfg))
    except OSError:
        raise
    except Exception as error:  # whatever another package raises
        raise ValueError(f"{cfg.get('type')} cannot be built: {one_line(error, 300)}") from error
    model = inner_detector(model)
    model.eval()
    return model


def _need_no_processes(value: Any) -> None:
    """Put PyTorch's synchronised norm for mmcv's, which cannot be built outside of a process group."""
    if isinstance(value, dict) and value.get("type") == "MMSyncBN":
        value["type"] = "SyncBN"
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _need_no_processes(inner)


def _by_part(model: nn.Module, by_module: dict[str, int]) -> Complexity:
    """Sum parameters and multiply-adds by part.

    Args:
        model: The model, with the children 'backbone' and perhaps 'neck'.
        by_module: The multiply-adds of each module, by its name; those of its children are included.
    """
    attention = {name for name, module in model.named_modules() if isinstance(module, Attention)}

    def of_attention(part: str = "") -> int:
        return sum(by_module.get(name, 0) for name in attention if name.startswith(part))

    in_attention = of_attention()
    backbone = by_module.get("backbone", 0) - of_attention("backbone.")
    neck = by_module.get("neck", 0) - of_attention("neck.")
    return Complexity(
        parameters=_parameters(model),
        trainable=_parameters(model, trainable=True),
        attention_parameters=sum(_parameters(model.get_submodule(name)) for name in attention),
        backbone=backbone,
        neck=neck,
        heads=by_module[""] - backbone - neck - in_attention,
        attention=in_attention,
    )


def _as_paper_two_stage(found: Complexity, model: nn.Module) -> Complexity:
    """Adapt the counts of a two-stage detector to the paper's: a background class, and SE without biases."""
    extra, operations = _background_in_heads(model)
    biases = [
        parameter
        for module in model.modules()
        if isinstance(module, Attention) and not module.biases_in_detectors
        for name, parameter in module.named_parameters()
        if name.endswith("bias")
    ]
    without = sum(parameter.numel() for parameter in biases)
    return replace(
        found,
        parameters=found.parameters + extra - without,
        trainable=found.trainable + extra - sum(p.numel() for p in biases if p.requires_grad),
        attention_parameters=found.attention_parameters - without,
        heads=found.heads + operations,
    )


def _parameters(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _background_in_heads(model: Any) -> tuple[int, int]:
    """The parameters and multiply-adds that the background class adds to the heads."""
    parameters = operations = 0
    for head in model.roi_head.modules():
        if getattr(head, "with_reg", False) and not head.reg_class_agnostic:
            inputs = head.fc_reg.in_features
            parameters += 4 * (inputs + 1)
            operations += 4 * inputs * PROPOSALS
        if isinstance(head, FCNMaskHead) and not head.class_agnostic:
            side = 2 * model.roi_head.mask_roi_extractor.roi_layers[0].output_size[0]
            parameters += head.conv_logits.in_channels + 1
            operations += head.conv_logits.in_channels * side * side * MASKS
    return parameters, operations


class _Bare(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Any:
        return self.backbone(image)


class _Classifier(_Bare):
    """A backbone with a linear head, as the paper's on ImageNet."""

    def __init__(self, backbone: nn.Module, classes: int):
        super().__init__(backbone)
        width: Any = getattr(backbone, "feat_dim", None)
        if width is None:
            raise ValueError(
                f"{type(backbone).__name__} has no feat_dim, the width of its last stage: use --convention mmengine"
            )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes, device="meta")

    def forward(self, image: Tensor) -> Any:
        return self.classifier(self.pool(self.backbone(image)[-1]).flatten(1))


def _statistics(model: nn.Module) -> int:
    """The elements of the running means and variances of all batch norms."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return sum(2 * norm.num_features for norm in norms if norm.track_running_stats)


def _count_layers(
    model: nn.Module, image: Tensor, rule: Callable[[nn.Module, Tensor, Tensor], int]
) -> tuple[dict[str, int], list[str]]:
    counts: dict[str, int] = {}
    handles = []
    attention = [module for module in model.modules() if isinstance(module, Attention)]
    uncounted = {layer for module in attention for layer in module.modules() if isinstance(layer, module.uncounted)}
    for name, module in model.named_modules():

        def count(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            operations = rule(module, inputs[0] if inputs else output, output)
            while True:  # add to the module's count, and to those of all its parents
                counts[name] = counts.get(name, 0) + operations
                if not name:
                    break
                name = name.rpartition(".")[0]

        # A convolution has a child where attention was inserted at it.
        whole = isinstance(module, Attention | Attending | BasicBlock | Bottleneck)
        if module not in uncounted and (whole or not any(True for _ in module.children())):
            handles.append(module.register_forward_hook(count))
    with torch.no_grad(), operators.Reads() as reads:
        model(image)
    for handle in handles:
        handle.remove()
    return counts, operators.unused(model, reads.parameters)


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    """The multiply-adds of a convolution or linear layer; 0 of others."""
    if isinstance(module, _ConvTransposeNd):
        kernel = module.weight.numel() // (module.in_channels * module.out_channels // module.groups)
        return output.numel() * kernel * module.in_channels // module.groups
    if isinstance(module, _ConvNd):
        return output.numel() * module.weight[0].numel()
    return output.numel() * module.in_features if isinstance(module, nn.Linear) else 0


def _as_paper(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Count a layer by the rules of the SA-Net paper."""
    if isinstance(module, _BatchNorm):
        return 2 * output.numel()
    if isinstance(module, nn.ReLU):
        return output.numel()
    if isinstance(module, _MaxPoolNd | _AvgPoolNd | _AdaptiveAvgPoolNd):
        return x.numel()
    if isinstance(module, Attention):
        return int(module.pooled * x.numel())
    return _multiply_adds(module, output)


def _as_senet(module: nn.Module, x: Tensor, output: Tensor) -> int:
    """Count a layer or a residual block's addition by the rules of the SENet article."""
    return output.numel() if isinstance(module, BasicBlock | Bottleneck) else _multiply_adds(module, output)


_RULES = dict(paper=_as_paper, senet=_as_senet)
