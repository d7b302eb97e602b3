"""What all backends need to know of a tensor: the dtype of statistics, the memory layout, the order of the channels.

And of the moment: whether a compiler looks at what is done with it.
"""

import torch
from torch import Tensor

# torch.compiler.is_compiling came with PyTorch 2.2, TorchDynamo with 2.0.
if hasattr(torch, "compiler") and hasattr(torch.compiler, "is_compiling"):
    is_compiling = torch.compiler.is_compiling
else:
    is_compiling = getattr(getattr(torch, "_dynamo", None), "is_compiling", lambda: False)


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype for statistics of a tensor: a sum over the positions overflows float16 and is coarse in bfloat16."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout of a feature map: channels-last if that is its only one, else contiguous."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def in_memory_format(x: Tensor, layout: torch.memory_format) -> Tensor:
    """A feature map with exactly the strides of a new one; PyTorch leaves any stride to an axis of length 1."""
    if not x.numel():
        return torch.empty_like(x, memory_format=layout)
    _, c, h, w = x.shape
    strides = (c * h * w, h * w, w, 1) if layout == torch.contiguous_format else (c * h * w, 1, w * c, c)
    x = x.contiguous(memory_format=layout)
    return x if x.stride() == strides else x.as_strided(x.shape, strides)


def shuffle_channels(x: Tensor, dim: int = 1) -> Tensor:
    """Move channel c to 2c if c < C/2, to 2(c - C/2) + 1 otherwise.

    ``torch.channel_shuffle`` does the same, but has a derivative only from PyTorch 2 on.

    Args:
        x: A tensor with an even number of channels.
        dim: The axis of the channels.
    """
    return x.unflatten(dim, (2, x.shape[dim] // 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def unshuffled_halves(x: Tensor, dim: int = 1) -> Tensor:
    """A view of shuffled channels in the order before the shuffle, with an axis of the two halves: 2 x C/2."""
    return x.unflatten(dim, (x.shape[dim] // 2, 2)).transpose(dim, dim + 1)


def unshuffle_channels(x: Tensor, dim: int = 1) -> Tensor:
    """The inverse of :func:`shuffle_channels`: channel c of the result is the one that c was moved to."""
    return unshuffled_halves(x, dim).flatten(dim, dim + 1)
