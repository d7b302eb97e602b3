"""numpy's arrays and numbers from inert records, in the forms that numpy itself writes."""

import math
import re
from typing import Any

import numpy as np

from .builder import Builder, Factory, only_call, refused
from .records import Call, Global


def _dtype(builder: Builder, call: Call) -> np.dtype:
    code, *_ = builder.arguments(call, 1, 3)
    if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?[biuf]\d{1,2}", code):
        raise refused(f"numpy.dtype {code!r}")
    try:
        dtype = np.dtype(code)
    except TypeError as error:
        raise refused(f"numpy.dtype {code!r}") from error
    for state in map(builder.build, call.states):
        # (version, byte order, no subarray, no names, no fields, sizes that follow from the code, flags)
        if type(state) is not tuple or len(state) < 8 or state[2:7] != (None, None, None, -1, -1):
            raise refused("numpy.dtype with a state of the file's own")
        if state[1] not in ("<", ">", "=", "|"):
            raise refused(f"numpy.dtype with byte order {state[1]!r}")
        dtype = dtype.newbyteorder(state[1])
    return dtype


def _array(builder: Builder, call: Call) -> np.ndarray:
    """An array as numpy's __reduce__ writes it: an empty one, then its shape, type and bytes."""
    kind, *empty = call.arguments or (None,)
    if kind != Global("numpy.ndarray") or [builder.build(part) for part in empty] != [(0,), b"b"]:
        raise refused("a numpy array made in another way than numpy's own")
    if call.items or len(call.states) != 1:
        raise refused("a numpy array without content")
    state = builder.build(call.states[0])
    if type(state) is not tuple or len(state) != 5:
        raise refused("a numpy array with a state of the file's own")
    _, shape, dtype, columns_first, data = state
    return _filled(data, dtype, shape, "F" if columns_first else "C")


def _array_of_buffer(builder: Builder, call: Call) -> np.ndarray:
    """An array as numpy writes it in protocol 5."""
    only_call(call)
    data, dtype, shape, order = builder.arguments(call, 4)
    return _filled(data, dtype, shape, order)


def _filled(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    sizes = type(shape) is tuple and len(shape) <= 32 and all(type(size) is int and size >= 0 for size in shape)
    if (
        not sizes
        or not isinstance(dtype, np.dtype)
        or order not in ("C", "F")
        or not isinstance(data, bytes | bytearray)
    ):
        raise refused("a numpy array of something other than numbers")
    if math.prod(shape) * dtype.itemsize != len(data) or (not len(data) and max(shape, default=0) > 2**31):
        raise refused(f"a numpy array of shape {shape} in {len(data)} bytes")
    native = dtype.newbyteorder("=")  # which PyTorch needs
    if not data:
        return np.empty(shape, native)
    return np.frombuffer(data, dtype).reshape(shape, order=order).astype(native, order="K")


def _scalar(builder: Builder, call: Call) -> np.generic:
    only_call(call)
    dtype, data = builder.arguments(call, 2)
    if not isinstance(dtype, np.dtype) or type(data) is not bytes or len(data) != dtype.itemsize:
        raise refused("a numpy number of something other than its bytes")
    return np.frombuffer(data, dtype)[0]


FACTORIES: dict[str, Factory] = {
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},  # numpy 1, numpy 2
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of_buffer for core in ("core", "_core")},
}
