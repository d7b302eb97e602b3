"""Batch norms in evaluation mode, which are a scale and a shift of each channel."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import compiled
from .tensors import at_least_float32


class EvalNorm(NamedTuple):
    """A batch norm in evaluation mode, (x - mean) / sqrt(variance + eps) * weight + bias; C elements each, or None."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    variance: Tensor | None
    eps: float

    @property
    def exists(self) -> bool:
        """Whether it does anything; mmcv's fuse_conv_bn leaves none."""
        return any(vector is not None for vector in self[:4])

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The norm as scale * x + shift (C each), in float32 where its own dtype is coarser; all four vectors exist."""
        weight, bias, mean, variance, eps = self
        if weight is None or bias is None or mean is None or variance is None:
            raise ValueError("a norm without weight, bias or statistics has no scale and shift here")
        dtype = at_least_float32(weight)
        scale = weight.to(dtype) * torch.rsqrt(variance.to(dtype) + eps)
        return scale, bias.to(dtype) - mean.to(dtype) * scale

    def normalised(self, x: Tensor) -> Tensor:
        """The norm of x (N x C x H x W) without weight and bias, in float32 or float64."""
        y = x.to(at_least_float32(x))
        if self.mean is not None:
            y = y - per_channel(self.mean, y)
        return y if self.variance is None else y * self.rstd(y)

    def affine(self, normalised: Tensor) -> Tensor:
        """Weight and bias applied to the result of :meth:`normalised`."""
        y = normalised if self.weight is None else normalised * per_channel(self.weight, normalised)
        return y if self.bias is None else y + per_channel(self.bias, y)

    def rstd(self, like: Tensor) -> Tensor:
        """1 / sqrt(variance + eps), C x 1 x 1 in the dtype of ``like``; 1 without a variance."""
        if self.variance is None:
            return like.new_ones(1, 1, 1)
        return torch.rsqrt(per_channel(self.variance, like) + self.eps)

    def scale(self, like: Tensor) -> Tensor:
        """What multiplies x in all, C x 1 x 1 in the dtype of ``like``."""
        return self.rstd(like) if self.weight is None else self.rstd(like) * per_channel(self.weight, like)


def per_channel(vector: Tensor, like: Tensor) -> Tensor:
    """A number for each channel, C x 1 x 1 in the dtype of ``like``."""
    return vector.to(like.dtype).reshape(-1, 1, 1)


NO_NORM = EvalNorm(*compiled.NO_NORM)
