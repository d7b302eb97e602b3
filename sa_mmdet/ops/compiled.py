"""The fused operator on CPUs, compiled from C++: see :mod:`sa_mmdet.ops.native`.

The library is built when the package is installed where PyTorch and a compiler are. Where it is missing, PyTorch's own
operators compute the same.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .native import library_name
from .reference import parameter_gradients
from .tensors import at_least_float32, is_compiling

# The operators that came last. A checkout that is updated without being installed again has a library without them.
_NEWEST = ("max_pool",)


def _load() -> str | None:
    """Load the library; returns why there is none, or None."""
    libraries = {path.name.partition(".")[0]: path for path in (Path(__file__).parent / "native").glob("_torch_*")}
    own = libraries.get(library_name())
    if own is None:
        others = ", ".join(sorted(name.removeprefix("_torch_") for name in libraries))
        built = f"compiled for PyTorch {others} alone" if others else "not compiled"
        return f"the C++ operator is {built}: install the package again, where there is a C++ compiler"
    try:
        torch.ops.load_library(str(own))
    except (OSError, RuntimeError) as error:
        return f"{own.name} cannot be loaded: {error}"
    lacking = [name for name in _NEWEST if not hasattr(torch.ops.sa_mmdet_cpu, name)]
    return f"{own.name} is compiled from older sources: install the package again" if lacking else None


# Why the operators cannot be used, or None.
missing = _load()
# Weight, bias, mean, variance and eps of a batch norm that is not there.
NO_NORM = (None, None, None, None, 0.0)

# What the operators compute in; half precision is computed in float32 and rounded once.
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def obstacle(x: Tensor) -> str | None:
    """Why the operators that have their own derivatives cannot take a tensor at this moment, or None.

    Whoever compiles or exports a network sees other operators, which compilers know: see
    :mod:`sa_mmdet.ops.custom_op`.
    """
    if missing is not None:
        return missing
    if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
        return f"the input is of the class {type(x).__name__}"
    if is_compiling():
        return "torch.compile does it"
    if x.device.type != "cpu" or x.dtype not in _DTYPES or x.layout != torch.strided:
        return f"there is no compiled operator for {x.dtype} of the layout {x.layout} on {x.device.type}"
    return None if x.numel() else "the feature map is empty"


def shuffle_attention(
    x: Tensor,
    identity: Tensor | None,
    norm: tuple,
    identity_norm: tuple,
    parameters: tuple,
    eps: float,
    keep: bool = False,
) -> Tensor:
    """Compute shuffle attention of norm(x), with the end of a residual block if there is an identity.

    Args:
        x: N x C x H x W.
        identity: N x C x H x W, or None for the attention alone.
        norm: Weight, bias, mean and variance of a batch norm (C elements or None each), and what is added to the
            variance.
        identity_norm: The same for the identity.
        parameters: The six parameters, as :class:`sa_mmdet.ops.reference.Parameters` orders them, K elements each.
        eps: Added to the variance of the spatial branch.
        keep: Whether to keep all of x for the gradients. Otherwise the spatial branch is kept, and what the result and
            the identity do not give of the channel branch.
    """
    operator = torch.ops.sa_mmdet_cpu.shuffle_attention
    return operator(x, identity, *norm, *identity_norm, *parameters, eps, keep)


def forward(
    x: Tensor,
    identity: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`sa_mmdet.ops.cpu.forward`."""
    vectors = _vectors(x, scale, shift, parameters)
    identity = None if identity is None else identity.contiguous()
    out, mean, rstd = torch.ops.sa_mmdet_cpu.forward(x.contiguous(), identity, *vectors, eps)
    return out, mean, rstd


def backward(
    grad_out: Tensor,
    x: Tensor,
    out: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    parameters: Tensor,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`sa_mmdet.ops.cpu.backward`."""
    vectors = scale_wide, shift_wide, rows = _vectors(x, scale, shift, parameters)
    maps: Any = (grad_out.contiguous(), x.contiguous(), None if out is None else out.contiguous())
    grad_x, grad_identity, sums = torch.ops.sa_mmdet_cpu.backward(*maps, mean, rstd, *vectors)
    grad_y, grad_y_x, grad_logit, grad_logit_normalised = sums

    def by_branch(values: Tensor) -> tuple[Tensor, ...]:
        return values.unflatten(1, (groups, 2, rows.shape[1])).unbind(2)

    channel_mean, _ = by_branch(mean * scale_wide + shift_wide)
    channel_logit, spatial_logit = by_branch(grad_logit)
    grad_parameters = parameter_gradients(
        rows,
        (channel_logit * channel_mean).sum((0, 1)),
        channel_logit.sum((0, 1)),
        by_branch(grad_logit_normalised)[1].sum((0, 1)),
        spatial_logit.sum((0, 1)),
    )
    return grad_x, grad_identity, grad_y_x.sum(0), grad_y.sum(0), grad_parameters


def _vectors(x: Tensor, scale: Tensor | None, shift: Tensor | None, parameters: Tensor) -> tuple[Tensor, ...]:
    """Scale and shift (C each) and the parameters (6 x K), contiguous and in the dtype of the arithmetic."""
    dtype = at_least_float32(x)
    scale = x.new_ones(x.shape[1], dtype=dtype) if scale is None else scale.to(dtype).contiguous()
    shift = x.new_zeros(x.shape[1], dtype=dtype) if shift is None else shift.to(dtype).contiguous()
    return scale, shift, parameters.to(dtype).contiguous()
