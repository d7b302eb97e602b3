"""A Bottleneck that runs its tail, batch norm to ReLU, as one operator where it can."""

from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn

from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.ops import backends
from sa_mmdet.ops.fusion import Replaceable, obstacle_in_call, obstacle_in_modules

_FORWARD, _FORWARD_PLUGIN = Bottleneck.forward, Bottleneck.forward_plugin
_ATTENTION, _RELU = Replaceable(ShuffleAttention), Replaceable(nn.ReLU)
# The last is what MMEngine makes of synchronised ones where there is one process.
_NORMS = {kind: Replaceable(kind) for kind in (nn.BatchNorm2d, nn.SyncBatchNorm, _BatchNormXd)}


class FusedBottleneck(Bottleneck):
    """MMDetection's Bottleneck, of the same parameters and results.

    Where shuffle attention stands alone after the last norm and that norm is a batch norm in evaluation mode
    (MMDetection's ``norm_eval=True``, also while training), norm, attention, shuffle, addition and ReLU are one
    operator, which reads and writes less memory than the plain block's norm, addition and ReLU. Everywhere else, and
    where a layer of the tail is of another class, replaced or hooked, it is MMDetection's own forward.
    """

    def forward(self, x: Tensor) -> Tensor:
        if obstacle_in_call(x) or self.obstacle_to_fusion():
            return super().forward(x)
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._fused_forward, x, use_reentrant=False)
        return self._fused_forward(x)

    def _fused_forward(self, x: Tensor) -> Tensor:
        """MMDetection's forward up to the last convolution, then the tail."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.forward_plugin(out, self.after_conv1_plugin_names)
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.forward_plugin(out, self.after_conv2_plugin_names)
        out = self.conv3(out)
        identity = x if self.downsample is None else self.downsample(x)
        attention = getattr(self, self.after_conv3_plugin_names[0])
        return attention.forward_residual(out, identity, *_scale_and_shift(self.norm3))

    def obstacle_to_fusion(self) -> str | None:
        """Why the tail, as it stands now, is not one operator, or None."""
        names = getattr(self, "after_conv3_plugin_names", [])
        attention: Any = getattr(self, names[0]) if len(names) == 1 else None
        if not isinstance(attention, ShuffleAttention):
            return "the tail has not shuffle attention alone"
        if attention.implementation == "reference":
            return "implementation='reference' is asked for"
        if Bottleneck.forward is not _FORWARD:
            return "the forward of MMDetection's Bottleneck is replaced"
        if type(self).forward_plugin is not _FORWARD_PLUGIN or "forward_plugin" in self.__dict__:
            return "forward_plugin is replaced"
        return (
            obstacle_in_modules()
            or _ATTENTION.obstacle(names[0], attention)
            or attention.obstacle_to_fusion()
            or _RELU.obstacle("relu", self.relu)
            or _obstacle_in_norm(self.norm3_name, self.norm3)
        )


def _obstacle_in_norm(name: str, norm: Any) -> str | None:
    """Why a norm cannot be folded into a scale and a shift, or None."""
    replaceable = _NORMS.get(type(norm))
    if replaceable is None:
        return f"{name} is of the class {type(norm).__name__}"
    if norm.training:
        return f"{name} is in training mode"
    if norm.weight is None or norm.bias is None or norm.running_mean is None:
        return f"{name} has no weight, bias or running statistics"
    return replaceable.obstacle(name, norm)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as y = scale * x + shift."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def obstacles_to_fusion(model: nn.Module) -> dict[str, str | None]:
    """Which blocks of a model run their tail, batch norm to ReLU, as one operator, and why the others do not.

    The answer is of the model as it stands: by :meth:`train` or :meth:`eval`, on its device, with its hooks.

    Returns:
        Of each residual block with attention, by its dotted name, the reason why it is not fused; None where it is.
    """
    return {
        name: _obstacle_in_block(block)
        for name, block in model.named_modules()
        if isinstance(block, FusedBottleneck) or any(isinstance(child, ShuffleAttention) for child in block.children())
    }


def _obstacle_in_block(block: nn.Module) -> str | None:
    if not isinstance(block, FusedBottleneck):
        return f"{type(block).__name__} has no fused form"
    if type(block).forward is not FusedBottleneck.forward or "forward" in block.__dict__:
        return "the forward of the block is replaced"
    parameter = next(block.parameters())
    like_input = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
    return block.obstacle_to_fusion() or obstacle_in_call(like_input) or backends.failures.get(parameter.device)
