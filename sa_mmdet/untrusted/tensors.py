"""Tensors from inert records: every size is compared with the memory that the file gives before a tensor is made."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .builder import Builder, Factory, only_call, refused
from .errors import RefusedFileError
from .records import Call, Global

_MOST_DIMENSIONS = 64
_MOST_REPEATED = 1 << 20  # elements of a tensor that repeats what is stored, such as one that was expanded
_LARGEST = 2**62
_KINDS = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": torch.uint8,
}  # fmt: skip
_STORAGES = {
    f"{module}.{name}Storage": dtype
    for name, dtype in _KINDS.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}


@dataclass(frozen=True)
class StoredReference:
    """What a checkpoint says about the memory of its tensors."""

    key: str
    dtype: torch.dtype
    count: int  # elements
    location: str

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * itemsize(self.dtype)


@dataclass(frozen=True)
class Storage:
    """Memory that has been read, and the type of its elements."""

    memory: Any  # torch.UntypedStorage
    dtype: torch.dtype
    count: int


def itemsize(dtype: torch.dtype) -> int:
    """The bytes of an element; PyTorch before 2.1 has no ``dtype.itemsize``."""
    return torch.empty(0, dtype=dtype).element_size()


def stored_reference(reference: Any) -> StoredReference:
    """Check what a pickle says about a tensor's memory.

    Args:
        reference: ``("storage", class, key, location, number of elements)``, and None in files from before PyTorch 1.6.

    Raises:
        RefusedFileError: It is something else.
    """
    if type(reference) is not tuple or len(reference) not in (5, 6) or not _is("storage", reference[0]):
        raise refused("a reference to something other than a tensor's memory")
    _, kind, key, location, count = reference[:5]
    if type(kind) is not Global or kind.name not in _STORAGES:
        raise refused(kind.name if type(kind) is Global else "memory of an unknown kind")
    if reference[5:] not in ((), (None,)) or not isinstance(key, str) or not isinstance(location, str):
        raise refused("memory in the form that PyTorch 0.1 wrote")
    if type(count) is not int or not 0 <= count < _LARGEST:
        raise RefusedFileError(f"is damaged: a tensor has memory for {count!r} elements")
    return StoredReference(key, _STORAGES[kind.name], count, location)


def _is(text: str, value: Any) -> bool:
    return value == text if isinstance(value, str) else value == text.encode() if isinstance(value, bytes) else False


def _shaped(storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None) -> Tensor:
    if type(storage) is not Storage or not all(
        type(sizes) in (tuple, torch.Size) and len(sizes) <= _MOST_DIMENSIONS and all(map(_is_size, sizes))
        for sizes in (shape, strides)
    ):
        raise refused("a tensor of something other than memory and sizes")
    if len(shape) != len(strides) or not _is_size(offset):
        raise refused("a tensor whose shape and strides differ in length")
    dtype = storage.dtype if dtype is None else dtype
    elements = math.prod(shape)
    there = storage.count * itemsize(storage.dtype) // itemsize(dtype)
    last = (
        offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if elements else offset
    )
    if (elements and last >= there) or offset > there:
        raise RefusedFileError(
            f"is damaged: a tensor of shape {tuple(shape)} reaches past its memory of {there} elements"
        )
    if elements > max(there, _MOST_REPEATED):
        raise RefusedFileError(
            f"holds a tensor of shape {tuple(shape)} that repeats the {there} numbers that are stored"
        )
    tensor = torch.empty(0, dtype=dtype, device=storage.memory.device)
    return tensor.set_(storage.memory, offset, tuple(shape), tuple(strides))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _without_hooks(hooks: Any) -> None:
    if hooks:
        raise refused("hooks of a tensor")


def _check_gradient(tensor: Tensor, requires: Any) -> None:
    if type(requires) is not bool or (requires and not (tensor.is_floating_point() or tensor.is_complex())):
        raise refused(f"a tensor of {tensor.dtype} with requires_grad={requires!r}")


def _with_gradient(tensor: Tensor, requires: Any) -> Tensor:
    _check_gradient(tensor, requires)
    return tensor.requires_grad_(requires)


def _tensor_v1(builder: Builder, call: Call) -> Tensor:
    only_call(call)
    return _shaped(*builder.arguments(call, 4))


def _tensor_v2(builder: Builder, call: Call) -> Tensor:
    only_call(call)
    storage, offset, shape, strides, requires, hooks, *metadata = builder.arguments(call, 6, 7)
    _without_hooks(hooks)
    if metadata and metadata[0]:
        raise refused("a tensor in a form that checkpoints do not have")  # such as a conjugate view
    return _with_gradient(_shaped(storage, offset, shape, strides), requires)


def _tensor_v3(builder: Builder, call: Call) -> Tensor:
    """For the types of numbers that have no class of memory."""
    only_call(call)
    storage, offset, shape, strides, requires, hooks, dtype, *metadata = builder.arguments(call, 7, 8)
    _without_hooks(hooks)
    if not isinstance(dtype, torch.dtype) or (metadata and metadata[0]):
        raise refused("a tensor in a form that checkpoints do not have")
    return _with_gradient(_shaped(storage, offset, shape, strides, dtype), requires)


def _parameter(builder: Builder, call: Call) -> Tensor:
    """A parameter; attributes that the file gives to it are not weights and are left out."""
    only_call(call)
    data, requires, hooks, *_ = builder.arguments(call, 3, 4)
    _without_hooks(hooks)
    if not isinstance(data, Tensor):
        raise refused("a parameter of something other than a tensor")
    _check_gradient(data, requires)
    return torch.nn.Parameter(data.detach(), requires_grad=requires)


def _tensor_with_attributes(builder: Builder, call: Call) -> Tensor:
    """A tensor or parameter with attributes; these are not weights and are left out."""
    only_call(call)
    names = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
    rebuild, kind, arguments, _ = call.arguments if len(call.arguments) == 4 else (None,) * 4
    if type(rebuild) is not Global or rebuild.name not in REBUILDS or type(arguments) is not tuple:
        raise refused("torch._tensor._rebuild_from_type_v2")
    if type(kind) is not Global or kind.name not in names:
        raise refused(kind.name if type(kind) is Global else "a tensor of an unknown class")
    return REBUILDS[rebuild.name](builder, Call(rebuild, arguments))


def _size(builder: Builder, call: Call) -> torch.Size:
    only_call(call)
    [sizes] = builder.arguments(call, 1)
    if not isinstance(sizes, list | tuple) or not all(map(_is_size, sizes)):
        raise refused("torch.Size of something other than sizes")
    return torch.Size(sizes)


def _device(builder: Builder, call: Call) -> torch.device:
    only_call(call)
    values = builder.arguments(call, 1, 2)
    if not isinstance(values[0], str) or not all(type(value) is int and 0 <= value < 1024 for value in values[1:]):
        raise refused("torch.device of something other than a name")
    try:
        return torch.device(*values)
    except RuntimeError as error:
        raise refused(f"torch.device {values[0]!r}") from error


REBUILDS: dict[str, Factory] = {
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
FACTORIES: dict[str, Factory] = {
    **REBUILDS,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _size,
    "torch.device": _device,
}
CONSTANTS = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def relocate(memory: Any, location: str, map_location: Any) -> Any:
    """Put memory where :func:`torch.load` would.

    Args:
        memory: On the CPU.
        location: Where it was when it was saved.
        map_location: As torch.load takes it: None, a device or its name, a dict of names, or a function.
    """
    restore: Callable[[Any, str], Any] = torch.serialization.default_restore_location
    if map_location is None:
        return restore(memory, location)
    if isinstance(map_location, dict):
        return restore(memory, map_location.get(location, location))
    if isinstance(map_location, str | torch.device):
        return restore(memory, str(map_location))
    moved = map_location(memory, location)
    return restore(memory, location) if moved is None else moved
