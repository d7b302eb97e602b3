"""The fused operator on CPUs, compiled from C++: see :mod:`sa_mmdet.ops.native`.

The library is built when the package is installed where PyTorch and a compiler are. Where it is missing,
:mod:`sa_mmdet.ops.cpu` computes the same by PyTorch's operators.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .native import library_name
from .reference import parameter_gradients
from .tensors import at_least_float32


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
    return None


# Why the operator cannot be used, or None.
missing = _load()


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
