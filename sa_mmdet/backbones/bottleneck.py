"""A Bottleneck that runs its tail, batch norm to ReLU, as one operator where it can."""

from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sa_mmdet.attention import ShuffleAttention


class FusedBottleneck(Bottleneck):
    """MMDetection's Bottleneck, of the same parameters and results.

    Where shuffle attention stands alone after the last norm and that norm is a batch norm in evaluation mode
    (MMDetection's ``norm_eval=True``, also while training), norm, attention, shuffle, addition and ReLU are one
    operator, which reads and writes less memory than the plain block's norm, addition and ReLU. Everywhere else it is
    MMDetection's own forward.
    """

    def forward(self, x: Tensor) -> Tensor:
        attention = self._fusible_attention()
        if attention is None:
            return super().forward(x)
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._fused_forward, x, attention, use_reentrant=False)
        return self._fused_forward(x, attention)

    def _fused_forward(self, x: Tensor, attention: ShuffleAttention) -> Tensor:
        """MMDetection's forward up to the last convolution, then the tail."""
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.forward_plugin(out, self.after_conv1_plugin_names)
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.forward_plugin(out, self.after_conv2_plugin_names)
        out = self.conv3(out)
        identity = x if self.downsample is None else self.downsample(x)
        return attention.forward_residual(out, identity, *_scale_and_shift(self.norm3))

    def _fusible_attention(self) -> ShuffleAttention | None:
        """The attention whose tail can be fused, or None."""
        names = getattr(self, "after_conv3_plugin_names", [])
        attention = getattr(self, names[0]) if len(names) == 1 else None
        if not isinstance(attention, ShuffleAttention) or attention.implementation == "reference":
            return None
        norm = self.norm3
        fusible = (
            isinstance(norm, _BatchNorm)
            and norm.affine
            and norm.running_mean is not None
            and not norm.training
            and not torch.jit.is_tracing()
            # Hooks are somebody's wish to see what passes through these layers, which fused they do not call.
            and not any(_has_hooks(module) for module in (norm, attention))
        )
        return attention if fusible else None


def _scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as y = scale * x + shift."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _has_hooks(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # the last from torch 2
    return any(getattr(module, kind, None) for kind in kinds)
