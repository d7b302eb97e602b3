"""A Bottleneck that computes its tail, from the last batch norm to the last ReLU, as one operator where possible."""

from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn

from sa_mmdet.attention import ShuffleAttention
from sa_mmdet.ops import backends
from sa_mmdet.ops.fusion import Replaceable, obstacle_in_call, obstacle_in_modules
from sa_mmdet.ops.tensors import at_least_float32

_FORWARD, _FORWARD_PLUGIN = Bottleneck.forward, Bottleneck.forward_plugin
_ATTENTION, _RELU = Replaceable(ShuffleAttention), Replaceable(nn.ReLU)
# MMEngine replaces synchronised norms by the last where there is one process.
_NORMS = {kind: Replaceable(kind) for kind in (nn.BatchNorm2d, nn.SyncBatchNorm, _BatchNormXd)}


class FusedBottleneck(Bottleneck):
    """MMDetection's Bottleneck, with the same parameters and results.

    If shuffle attention is the only plugin after the last norm and that norm is a batch norm in evaluation mode
    (MMDetection's ``norm_eval=True``, also while training), one operator computes norm, attention, shuffle, addition
    and ReLU. It reads and writes less memory than the norm, the addition and the ReLU of the plain block. Otherwise,
    and where a layer of the tail is of another class, is replaced or has hooks, MMDetection's own forward runs.
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
        """Why one operator cannot compute the tail as it is now, or None."""
        names = getattr(self, "after_conv3_plugin_names", [])
        attention: Any = getattr(self, names[0]) if len(names) == 1 else None
        if not isinstance(attention, ShuffleAttention):
            return "shuffle attention is not the only plugin of the tail"
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
    """Why a norm cannot be replaced by a scale and a shift, or None."""
    replaceable = _NORMS.get(type(norm))
    if replaceable is None:
        return f"{name} is of the class {type(norm).__name__}"
    if norm.training:
        return f"{name} is in training mode"
    if norm.weight is None or norm.bias is None or norm.running_mean is None:
        return f"{name} has no weight, bias or running statistics"
    return replaceable.obstacle(name, norm)


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as y = scale * x + shift (C each), in float32 where its own dtype is coarser."""
    dtype = at_least_float32(norm.weight)
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def obstacles_to_fusion(model: nn.Module) -> dict[str, str | None]:
    """Say for each residual block with attention whether one operator computes its tail, and if not, why.

    The answer is about the model as it is now: in training or evaluation mode, on its device, with its hooks.

    Returns:
        For each block, by its dotted name, None if it is fused, otherwise the reason why it is not.
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
