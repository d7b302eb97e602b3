"""MMEngine's counter of multiply-adds, with operators of detectors that it does not know, and what it leaves out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.analysis.jit_handles import bmm_flop_jit, get_shape
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten


def _attention_flop(inputs: list[Any], outputs: list[Any]) -> int:
    """The two matrix products of attention: queries by keys, and weights by values."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    *batch, positions, channels = query
    products = positions * key[-2] * (channels + value[-1])
    for size in batch:
        products *= size
    return products


def _sum_of_products_flop(inputs: list[Any], outputs: list[Any]) -> Any:
    return bmm_flop_jit(inputs[1:3], outputs)


def _convolution_flop(weight: int) -> Any:
    """Count one of mmcv's deformable convolutions, whose weight is the input of that index."""

    def count(inputs: list[Any], outputs: list[Any]) -> int:
        out, kernel = get_shape(outputs[0]), get_shape(inputs[weight])
        return out[0] * out[2] * out[3] * kernel[0] * kernel[1] * kernel[2] * kernel[3]

    return count


_HANDLES = {
    "aten::scaled_dot_product_attention": _attention_flop,
    "aten::baddbmm": _sum_of_products_flop,
    "prim::PythonOp.DeformConv2dFunction": _convolution_flop(2),
    "prim::PythonOp.ModulatedDeformConv2dFunction": _convolution_flop(3),
}
# Functions of mmcv that only select.
_NO_LAYERS = {"NMSop", "SoftNMSop"}


class Reads(TorchFunctionMode):
    """Notes the parameters that functions of PyTorch are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") != "__get__":  # which reads an attribute, such as the device
            values, _ = tree_flatten((args, kwargs))
            self.parameters |= {id(value) for value in values if isinstance(value, nn.Parameter)}
        return function(*args, **(kwargs or {}))


def count(model: nn.Module, image: Tensor) -> tuple[dict[str, int], list[str]]:
    """Count a model's multiply-adds as MMEngine does.

    Args:
        model: The model, which takes the image.
        image: 1 x 3 x H x W.

    Returns:
        The multiply-adds of each module, by its name; those of its children are included. And what is not counted:
        modules whose parameters are not used, and functions of other packages whose operations nobody knows.
    """
    analyzer = FlopAnalyzer(model, (image,)).set_op_handle(**_HANDLES)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad(), _without_shortcuts(), _without_omissions(model), Reads() as reads:
        counts = {name: int(count) for name, count in analyzer.by_module().items()}
    functions = [kind.partition("prim::PythonOp.")[2] for kind in analyzer.unsupported_ops()]
    unknown = [function for function in functions if function and function not in _NO_LAYERS]
    return counts, [*unused(model, reads.parameters), *unknown]


@contextmanager
def _without_omissions(model: nn.Module) -> Iterator[None]:
    """A context in which the graph of a model has all layers that run; those without a use are left out otherwise."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        # One element is enough to make it an output of the graph.
        kept.extend(tensor[(slice(0, 1),) * tensor.dim()].clone() for tensor in tensors_in(output))

    def return_too(module: nn.Module, inputs: Any, output: Any) -> tuple[Tensor, ...]:
        return (*tensors_in(output), *kept)

    layers = [module for module in model.modules() if module is not model and [*module.parameters(recurse=False)]]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    handles.append(model.register_forward_hook(return_too))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, list | tuple) else []


@contextmanager
def _without_shortcuts() -> Iterator[None]:
    """A context in which PyTorch's attention consists of operators that can be counted, not of a single one."""
    backend: Any = getattr(torch.backends, "mha", None)
    if backend is None:  # before PyTorch 2.2
        yield
        return
    before = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        yield
    finally:
        backend.set_fastpath_enabled(before)


def unused(model: nn.Module, used: set[int]) -> list[str]:
    """The names of the largest modules of which no parameter is among those used, and of single parameters."""
    names: list[str] = []

    def visit(module: nn.Module, name: str) -> None:
        parameters = list(module.parameters())
        if not parameters:
            return
        if name and not any(id(parameter) in used for parameter in parameters):
            names.append(name)
            return
        prefix = f"{name}." if name else ""
        own = module.named_parameters(recurse=False)
        names.extend(f"{prefix}{key}" for key, parameter in own if id(parameter) not in used)
        for key, child in module.named_children():
            visit(child, f"{prefix}{key}")

    visit(model, "")
    return names
