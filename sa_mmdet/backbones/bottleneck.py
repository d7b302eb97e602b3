"""A Bottleneck whose elementwise work, such as its end from the last batch norm on, is one operator each."""

from typing import Any

import torch
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import Bottleneck
from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn

from sa_mmdet.attention import BakedShuffleAttention, ShuffleAttention
from sa_mmdet.attention.fused import FUSED
from sa_mmdet.ops import backends
from sa_mmdet.ops.block_end import BlockEnd, norm_relu
from sa_mmdet.ops.eval_norm import NO_NORM, EvalNorm
from sa_mmdet.ops.fusion import Replaceable, obstacle_in_call, obstacle_in_modules

_FORWARD, _FORWARD_PLUGIN = Bottleneck.forward, Bottleneck.forward_plugin
_ATTENTION, _RELU = {kind: Replaceable(kind) for kind in FUSED}, Replaceable(nn.ReLU)
_SEQUENTIAL = Replaceable(nn.Sequential)
_IDENTITY = Replaceable(nn.Identity)  # what mmcv's fuse_conv_bn leaves of a norm
# MMEngine replaces synchronised norms by the last where there is one process.
_NORMS = {kind: Replaceable(kind) for kind in (nn.BatchNorm2d, nn.SyncBatchNorm, _BatchNormXd)}


class FusedBottleneck(Bottleneck):
    """MMDetection's Bottleneck, with the same parameters and results.

    Where the batch norms are in evaluation mode (MMDetection's ``norm_eval=True``, also while training) and what
    follows the last norm is nothing or one of this package's attentions, one operator computes norm, attention,
    addition and ReLU, and one operator each computes the other norms and the ReLU after them. Where the norms
    are merged into the convolutions, it does so with the baked attention or none. They read and write less memory than
    the layers of the plain block, and keep less for the backward pass. Otherwise, and where a layer is of another
    class, is replaced or has hooks, MMDetection's own forward runs.

    Attributes:
        implementation: 'auto'; 'reference' for MMDetection's own forward in any case; or 'fused', which is 'auto' on
            CPUs, and on GPUs takes Triton's kernels for more than the ends with shuffle attention.
        keep_inputs: Whether to keep the norms' inputs for the backward pass, as MMDetection's layers do. GPUs do so in
            any case.
    """

    implementation = "auto"
    keep_inputs = False

    def forward(self, x: Tensor) -> Tensor:
        if obstacle_in_call(x) or self.obstacle_to_fusion(x):
            return super().forward(x)
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._fused_forward, x, use_reentrant=False)
        return self._fused_forward(x)

    def _fused_forward(self, x: Tensor) -> Tensor:
        """MMDetection's forward up to the last convolution, then the end."""
        out = self._norm_relu(self.conv1(x), self.norm1)
        out = self.forward_plugin(out, self._plugins_after("conv1"))
        out = self._norm_relu(self.conv2(out), self.norm2)
        out = self.forward_plugin(out, self._plugins_after("conv2"))
        out = self.conv3(out)
        names = self._plugins_after("conv3")
        attention: Any = getattr(self, names[0]) if names else None
        shuffled = isinstance(attention, ShuffleAttention)
        obstacle = backends.obstacle_to_compiled(out) if shuffled else self._obstacle_to_pointwise(out)
        identity, identity_norm = self._identity(x, norm_later=obstacle is None)
        end = BlockEnd(out, identity, _eval_norm(self.norm3), identity_norm, self.keep_inputs)
        return end.gated() if attention is None else attention.forward_end(end)

    def _plugins_after(self, convolution: str) -> list[str]:
        return getattr(self, f"after_{convolution}_plugin_names", [])

    def _norm_relu(self, x: Tensor, norm: Any) -> Tensor:
        if self._obstacle_to_pointwise(x) or _obstacle_in_norm("norm", norm):
            return self.relu(norm(x))
        return norm_relu(x, _eval_norm(norm), self.keep_inputs)

    def _identity(self, x: Tensor, norm_later: bool) -> tuple[Tensor, EvalNorm | None]:
        """What is added to the block's result, and a norm that it still has to pass."""
        downsample: Any = self.downsample
        if downsample is None:
            return x, None
        if not norm_later or _SEQUENTIAL.obstacle("downsample", downsample) or len(downsample) < 2:
            return downsample(x), None
        *layers, norm = downsample
        if _obstacle_in_norm("the downsample's norm", norm):
            return downsample(x), None
        for layer in layers:
            x = layer(x)
        return x, _eval_norm(norm)

    def obstacle_to_fusion(self, x: Tensor | None = None) -> str | None:
        """Why one operator cannot compute the block's end as it is now, or None.

        Args:
            x: The block's input; None for one like the parameters of the block.
        """
        names = self._plugins_after("conv3")
        attention: Any = getattr(self, names[0]) if len(names) == 1 else None
        if len(names) > 1 or (attention is not None and not isinstance(attention, FUSED)):
            return "an attention of this package is not the only plugin at the block's end"
        if "reference" in (self.implementation, getattr(attention, "implementation", None)):
            return "implementation='reference' is asked for"
        if Bottleneck.forward is not _FORWARD:
            return "the forward of MMDetection's Bottleneck is replaced"
        if type(self).forward_plugin is not _FORWARD_PLUGIN or "forward_plugin" in self.__dict__:
            return "forward_plugin is replaced"
        return (
            obstacle_in_modules()
            or (None if attention is None else self._obstacle_in_attention(names[0], attention))
            or self._obstacle_in_kernels(attention, x)
            or _RELU.obstacle("relu", self.relu)
            or self._obstacle_in_last_norm(attention)
        )

    @staticmethod
    def _obstacle_in_attention(name: str, attention: Any) -> str | None:
        replaceable = _ATTENTION.get(type(attention))
        if replaceable is None:
            return f"{name} is of the class {type(attention).__name__}"
        return replaceable.obstacle(name, attention) or attention.obstacle_to_fusion()

    def _obstacle_in_last_norm(self, attention: Any) -> str | None:
        if type(self.norm3) is not nn.Identity:
            if isinstance(attention, BakedShuffleAttention):
                return f"{self.norm3_name} is not merged into its convolution"
            return _obstacle_in_norm(self.norm3_name, self.norm3)
        if attention is None or isinstance(attention, BakedShuffleAttention):
            return _IDENTITY.obstacle(self.norm3_name, self.norm3)
        return f"{self.norm3_name} is merged into its convolution"

    def _obstacle_in_kernels(self, attention: Any, x: Tensor | None) -> str | None:
        """Why there is no kernel for this attention and this input, or None; shuffle attention has others, too."""
        if isinstance(attention, ShuffleAttention):
            return None
        x = _like_input(self) if x is None else x
        if isinstance(attention, BakedShuffleAttention) and backends.by_triton(x):
            return "there is no kernel for the baked attention on GPUs"
        return self._obstacle_to_pointwise(x)

    def _obstacle_to_pointwise(self, x: Tensor) -> str | None:
        """Why no operator computes norms, gates, additions and ReLUs of this block's maps, or None."""
        if backends.by_triton(x) and self.implementation != "fused":
            return (
                "these kernels for GPUs, which have not been measured yet, are taken with implementation='fused' alone"
            )
        return backends.obstacle_to_block_end(x)


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


def _eval_norm(norm: Any) -> EvalNorm:
    if type(norm) is nn.Identity:
        return NO_NORM
    return EvalNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def _like_input(block: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device of the block's parameters."""
    parameter = next(block.parameters())
    return torch.empty(1, dtype=parameter.dtype, device=parameter.device)


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
    like_input = _like_input(block)
    return block.obstacle_to_fusion() or obstacle_in_call(like_input) or backends.failures.get(like_input.device)
