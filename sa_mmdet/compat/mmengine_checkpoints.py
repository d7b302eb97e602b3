"""Repairs of how MMEngine reads checkpoints: its own training history, strictness, names of torchvision's weights."""

import functools
import importlib.util
import operator
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import torch
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, load_from_http

from . import old_torch

_STATISTICS = ("current", "max", "mean", "min")


class _LoadedHistoryBuffer(HistoryBuffer):
    """Stands in for HistoryBuffer while a checkpoint is read, and becomes one once its state is set.

    HistoryBuffer's own __setstate__ would put any callable of the file among the statistics of all buffers.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        histories = {name: state.get(name) for name in ("_log_history", "_count_history")}
        expected = {"max_length", "statistics_methods", *histories}
        if set(state) != expected or not all(type(history) is np.ndarray for history in histories.values()):
            raise pickle.UnpicklingError(
                f"a checkpoint's HistoryBuffer must hold exactly {sorted(expected)}, with arrays as histories"
            )
        self.__class__ = HistoryBuffer
        HistoryBuffer.__init__(self, max_length=operator.index(state["max_length"]))
        self.__dict__.update(histories)


def _statistic(owner: Any, name: Any) -> Any:
    """Stands in for the built-in getattr, by which a HistoryBuffer's pickle names its statistics."""
    if owner in (_LoadedHistoryBuffer, HistoryBuffer) and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f"a checkpoint asks for getattr({owner!r}, {name!r}); only HistoryBuffer's {_STATISTICS} are admitted"
    )


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Stands in for numpy's _reconstruct, which makes the empty array that a pickle then fills."""
    if kind is np.ndarray and shape == (0,) and code == b"b":
        return np.empty(0, np.int8)
    raise pickle.UnpicklingError(
        f"a checkpoint asks for an array {kind!r} of shape {shape!r}; only what numpy pickles itself is admitted"
    )


def _numeric_dtype(code: Any, *flags: Any) -> np.dtype:
    """Stands in for numpy.dtype, which could also name objects and structures."""
    if isinstance(code, str) and re.fullmatch(r"[<>=|]?[biuf]\d{1,2}", code):
        return np.dtype(code)
    raise pickle.UnpicklingError(f"a checkpoint asks for dtype {code!r}; only numbers and booleans are admitted")


def _numeric_scalar(dtype: Any, data: Any) -> np.generic:
    """Stands in for numpy's scalar, which unpickles an object where the dtype says so."""
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and type(data) is bytes and len(data) == dtype.itemsize:
        return np.frombuffer(data, dtype)[0]
    raise pickle.UnpicklingError(
        f"a checkpoint asks for a scalar of dtype {dtype!r}; only numbers and booleans are admitted"
    )


_NUMBERS = "b1 f2 f4 f8 i1 i2 i4 i8 u1 u2 u4 u8"
_PLAIN: tuple[type, ...] = (np.ndarray, *(type(np.dtype(code)) for code in _NUMBERS.split()))
_STAND_INS: dict[str, Callable[..., Any]] = {
    "mmengine.logging.history_buffer.HistoryBuffer": _LoadedHistoryBuffer,
    "builtins.getattr": _statistic,
    "numpy.dtype": _numeric_dtype,
    "numpy.core.multiarray._reconstruct": _empty_array,  # numpy 1
    "numpy._core.multiarray._reconstruct": _empty_array,  # numpy 2
    "numpy.core.multiarray.scalar": _numeric_scalar,
    "numpy._core.multiarray.scalar": _numeric_scalar,
}


def admit_training_history() -> None:
    """Let what MMEngine saves be loaded strictly.

    Since PyTorch 2.6 ``torch.load`` unpickles tensors and plain containers alone. MMEngine (up to 0.10.7) saves its
    training history beside them and does not ask for a looser way when it loads, so that ``test.py`` and ``--resume``
    fail. Admitted here are that history, HistoryBuffers of numeric arrays, and numeric scalars, and nothing else.
    Names that could reach further are admitted as stand-ins, which check their arguments.
    """
    if old_torch.LOADS_ANYTHING:
        old_torch.admit({f"{kind.__module__}.{kind.__qualname__}": kind for kind in _PLAIN} | _STAND_INS)
    else:
        torch.serialization.add_safe_globals([*_PLAIN, *((function, name) for name, function in _STAND_INS.items())])


def load_tensors(file: Any, map_location: Any = None, weights_only: Any = True) -> Any:
    """As :func:`torch.load`, for tensors, plain containers and MMEngine's history alone, with every PyTorch.

    Args:
        file: A path, or an open file.
        map_location: The devices to load to.
        weights_only: Ignored, always true; torch.load's callers pass it.

    Raises:
        pickle.UnpicklingError: The file holds anything else; none of it has been run.
    """
    if old_torch.LOADS_ANYTHING:
        old_torch.refuse_programs(file)
    return torch.load(file, map_location=map_location, weights_only=True)


def load_strictly() -> None:
    """Load tensors and plain containers alone wherever MMEngine loads checkpoints.

    PyTorch's loader of addresses (all versions so far) unpickles everything unless it is told otherwise, and MMEngine
    does not tell it; the fork (0.10.12) unpickles everything once the strict way has failed; and before PyTorch 2.6
    torch.load unpickles everything. A user's own calls of torch.load do what they did, except that before 2.6 those
    with ``weights_only=True`` use :class:`sa_mmdet.compat.old_torch.Unpickler`.
    """
    if old_torch.LOADS_ANYTHING:
        old_torch.load_strictly_in_mmengine(load_tensors)
    else:
        checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)
    if hasattr(checkpoint, "_safe_torch_load"):
        checkpoint._safe_torch_load = load_tensors


def load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    """Load torchvision's weights by their name, from MMEngine's own list of addresses.

    Args:
        filename: Such as 'torchvision://resnet50'.
        map_location: The devices to load to.

    Raises:
        ValueError: The list does not have this name.
    """
    name = filename.partition("://")[2]
    urls = load(Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json")
    if name not in urls:
        raise ValueError(f"{filename}: MMEngine's list of torchvision's weights does not have {name!r}")
    return load_from_http(urls[name], map_location=map_location)


def torchvision_is_missing() -> bool:
    """Whether MMEngine cannot ask torchvision for the addresses of its weights."""
    return importlib.util.find_spec("torchvision") is None


def resolve_torchvision_names() -> None:
    """Let 'torchvision://resnet50' name weights where torchvision is not installed.

    MMEngine (all versions so far) imports torchvision to look the address up, although it ships a list of its own.
    """
    prefixes = ("modelzoo://", "torchvision://")
    CheckpointLoader.register_scheme(prefixes=prefixes, loader=load_from_torchvision, force=True)
