"""The one decision whether the fused operator may replace the layers whose work it does, and if not, why.

It may where nobody could tell the difference. A layer of another class, with a replaced forward or with hooks is called
itself; and where a transform is active that does not know the operator, PyTorch's own operators compute the formula.
"""

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as module_hooks

from . import backends
from .custom_op import transforms_active
from .reference import Parameters
from .tensors import is_compiling

IMPLEMENTATIONS = ("auto", "fused", "reference")

# Stand-ins for plain tensors while PyTorch traces, which the operator has a fake form for.
_TRACED: tuple[type, ...] = ()
if backends.AVAILABLE:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    _TRACED = (FakeTensor, FunctionalTensor)
# The attributes of a module that hold its hooks; backward_pre_hooks came with PyTorch 2.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(hooks for kind in _HOOKS if (hooks := getattr(module_hooks, f"_global{kind}", None)) is not None)
_CALL = nn.Module.__call__


def use_fused(implementation: str, obstacle: str | None) -> bool:
    """Whether to use the fused operator.

    Args:
        implementation: One of :data:`IMPLEMENTATIONS`.
        obstacle: Why the operator cannot be used, or None.

    Raises:
        ValueError: The implementation is unknown, or it is 'fused' and there is an obstacle.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is unknown: choose one of {', '.join(IMPLEMENTATIONS)}")
    if implementation == "fused" and obstacle is not None:
        raise ValueError(f"implementation='fused' does not apply: {obstacle}; use 'auto' or 'reference'")
    return implementation != "reference" and obstacle is None


def obstacle_in_call(x: Tensor) -> str | None:
    """Why the operator cannot take this tensor at this moment, or None."""
    if obstacle := _obstacle_in_compiler():
        return obstacle
    if type(x) is not Tensor and type(x) is not nn.Parameter and (obstacle := _obstacle_in_type(x)):
        return obstacle
    if torch.jit.is_tracing():
        return "torch.jit traces it"
    if transforms_active():
        return "a transform of torch.func or forward-mode differentiation is active"
    if backends.unusable and backends.obstacle_to_compiled(x):
        return backends.unusable
    return backends.obstacle(x)


def _obstacle_in_compiler() -> str | None:
    """Why a compiler must see PyTorch's own operators, or None."""
    return backends.unusable if is_compiling() else None


def _obstacle_in_type(x: Tensor) -> str | None:
    if isinstance(x, Proxy):
        return "torch.fx traces it"
    if not isinstance(x, _TRACED):
        return f"the input is of the class {type(x).__name__}"
    return "ONNX has no such operator" if torch.onnx.is_in_onnx_export() else None


def obstacle_in_groups(groups: int, channels: int) -> str | None:
    """Why the operator does not take this number of groups, or None."""
    return f"groups={groups} is odd or does not fit" if groups % 2 or groups < 2 or channels % (2 * groups) else None


def obstacle_in_parameters(parameters: Parameters, groups: int, channels: int, shuffle: bool = True) -> str | None:
    """Why the operator does not compute what these arguments ask for, or None."""
    k = channels // (2 * groups)
    if not shuffle or any(parameter is None or parameter.numel() != k for parameter in parameters):
        return "it is one of the ablations"
    return obstacle_in_groups(groups, channels)


def obstacle_in_modules() -> str | None:
    """Why every module must be called itself, or None: there are global hooks, or calling is replaced."""
    if obstacle := _obstacle_in_compiler():
        return obstacle
    for hooks in _GLOBAL_HOOKS:
        if hooks:
            return "there are hooks on all modules"
    # PyTorch replaces it, too, while it traces, and calls the original.
    if nn.Module.__call__ is not _CALL and not nn.Module.__call__.__globals__["__name__"].startswith("torch."):
        return "nn.Module.__call__ is replaced"
    return None


class Replaceable:
    """A class of layers whose work the operator can do, with the forward that it had when this package was imported."""

    def __init__(self, kind: type[nn.Module]):
        self.kind, self.forward = kind, kind.forward

    def obstacle(self, name: str, module: nn.Module) -> str | None:
        """Why this layer must be called itself, or None."""
        if type(module) is not self.kind:
            return f"{name} is of the class {type(module).__name__}"
        if self.kind.forward is not self.forward:
            return f"the forward of {self.kind.__name__} is replaced"
        state = module.__dict__
        if "forward" in state:
            return f"the forward of {name} is replaced"
        for kind in _HOOKS:
            if state.get(kind):
                return f"{name} has hooks"
        return f"{name} is compiled by itself" if state.get("_compiled_call_impl") is not None else None
