"""The elementwise work of a residual block whose batch norms are in evaluation mode, by one operator each.

The compiled operators for CPUs have their derivatives in C++ and keep less than the layers that they replace: for a map
that was normalised and passed a ReLU the gradients need the result alone, since it gives the normalised input wherever
the ReLU let it pass. On GPUs Triton's kernels keep what a convolution returned, and PyTorch's own operators compute
what gates are made of. See docs/kernels.md.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import backends, block_end_op, compiled, pools
from .eval_norm import NO_NORM, EvalNorm
from .functional import shuffle_attention_residual
from .reference import Parameters


def norm_relu(x: Tensor, norm: EvalNorm, keep: bool = False) -> Tensor:
    """Compute relu(norm(x)) in one pass.

    Args:
        x: N x C x H x W.
        norm: The batch norm.
        keep: Whether to keep x for the gradients, which then are those of the separate layers to the last bit.
            Otherwise x is kept for the channels alone whose bias is large beside their weight. On GPUs it is kept in
            any case.
    """
    if backends.by_triton(x):
        return block_end_op.block_end(x, None, norm, None, None, NO_NORM)
    return torch.ops.sa_mmdet_cpu.norm_relu(x, *norm, keep)


@dataclass(frozen=True)
class BlockEnd:
    """The end of a residual block, relu(identity_norm(identity) + attention(norm(x))), but for the attention.

    Attributes:
        x: N x C x H x W, what the block's last convolution returned.
        identity: N x C x H x W.
        norm: The block's last norm.
        identity_norm: A norm of the identity, None if it has none or is normalised already.
        keep: Whether to keep x for the gradients, as :func:`norm_relu` takes it. Otherwise what does not follow from
            the result and the identity is kept.
    """

    x: Tensor
    identity: Tensor
    norm: EvalNorm
    identity_norm: EvalNorm | None = None
    keep: bool = False

    def means(self) -> Tensor:
        """The means of norm(x) over its positions, N x C in float32 or float64."""
        x, by_triton = self.x, backends.by_triton(self.x)
        means: Tensor = pools.row_means(x) if by_triton else torch.ops.sa_mmdet_cpu.row_means(x)
        scale, shift = self.norm.scale_and_shift()
        return torch.addcmul(shift.to(means.dtype), means, scale.to(means.dtype))

    def row_pools(self) -> tuple["BlockEnd", Tensor, Tensor]:
        """The means and the maxima of norm(x) over its positions, N x C each in float32 or float64.

        Returns:
            The end to go on with, the means and the maxima. Of several largest elements the first has the gradient.
        """
        if backends.by_triton(self.x):
            return self, *pools.row_pools(self.x, self.norm)
        means, maxima, x = torch.ops.sa_mmdet_cpu.row_pools(self.x, *self.norm)
        return replace(self, x=x), means, maxima

    def channel_pools(self, channel_gate: Tensor) -> tuple["BlockEnd", Tensor]:
        """The maximum and the mean of channel_gate * norm(x) over the channels, N x 2 x H x W in float32 or float64.

        Args:
            channel_gate: N x C.

        Returns:
            The end to go on with, and the pools. Of several largest elements the first has the gradient.
        """
        if backends.by_triton(self.x):
            return self, pools.channel_pools(self.x, self.norm, channel_gate)
        found, x = torch.ops.sa_mmdet_cpu.channel_pools(self.x, *self.norm, channel_gate)
        return replace(self, x=x), found

    def centred_similarity(self, directions: Tensor, groups: int) -> Tensor:
        """The scalar product of each position of norm(x) with a direction, less its mean over the positions.

        Args:
            directions: N x C, for each of G groups of adjacent channels a direction.
            groups: G.

        Returns:
            N x G x H x W, in the dtype of ``directions``.
        """
        n, channels, height, width = self.x.shape
        scale = self.norm.scale_and_shift()[0].to(directions.dtype)  # the shift adds the same at all positions
        with torch.autocast(self.x.device.type, enabled=False):
            weights = (directions * scale).view(n * groups, 1, channels // groups)
            maps = self.x.contiguous().view(n * groups, channels // groups, height * width).to(directions.dtype)
            products = torch.bmm(weights, maps).view(n, groups, height, width)
        return products - products.mean((2, 3), keepdim=True)

    def gated(self, channel_gate: Tensor | None = None, position_gate: Tensor | None = None) -> Tensor:
        """The result where attention multiplies by gates.

        Args:
            channel_gate: A gate for each image and channel, N x C; None for 1.
            position_gate: A gate for each position of each of G groups of adjacent channels, N x G x H x W; None for 1.
        """
        identity, identity_norm = self._identity()
        if backends.by_triton(self.x):
            gates = (channel_gate, position_gate)
            return block_end_op.block_end(self.x, identity, self.norm, *gates, identity_norm)
        arguments = (self.x, identity, *self.norm, channel_gate, position_gate, *identity_norm, self.keep)
        return torch.ops.sa_mmdet_cpu.residual(*arguments)

    def baked(self, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float) -> Tensor:
        """The result of baked shuffle attention, where the norm is merged into the convolution before it.

        The gate is sigmoid(norm_weight * normalised x + norm_bias + weight * mean of x), with x normalised in each
        channel of each image. There are no derivatives.

        Args:
            weight: C elements, as the two below.
            norm_weight: What multiplies the normalised x.
            norm_bias: What is added to the logit.
            eps: Added to the variance.
        """
        assert self.norm == NO_NORM
        identity, _ = self._identity()
        return torch.ops.sa_mmdet_cpu.baked_attention(self.x, identity, weight.flatten(), norm_weight, norm_bias, eps)

    def shuffled(self, parameters: Parameters, groups: int, eps: float, implementation: str) -> Tensor:
        """The result of shuffle attention, see :func:`sa_mmdet.ops.shuffle_attention_residual`.

        The identity has no norm where the compiled operators for CPUs do not compute it.
        """
        if backends.obstacle_to_compiled(self.x):
            assert self.identity_norm is None
            scale, shift = self.norm.scale_and_shift()
            options: Any = dict(groups=groups, eps=eps, implementation=implementation)
            return shuffle_attention_residual(self.x, self.identity, scale, shift, *parameters, **options)
        identity, identity_norm = self._identity()
        return compiled.shuffle_attention(self.x, identity, self.norm, identity_norm, parameters, eps, self.keep)

    def _identity(self) -> tuple[Tensor, EvalNorm]:
        return self.identity.to(self.x.dtype), self.identity_norm or NO_NORM
