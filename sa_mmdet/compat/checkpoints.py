"""How MMEngine reads checkpoints: what MMEngine saved, names of torchvision's weights, safetensors files."""

import functools
import importlib.util
import operator
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import mmengine
import numpy as np
import torch
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint
from mmengine.runner.checkpoint import CheckpointLoader, load_from_http, load_from_local
from mmengine.utils import digit_version

from . import strict_pickle

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
                f"a checkpoint's HistoryBuffer does not hold {sorted(expected)} alone, or no arrays in them"
            )
        self.__class__ = HistoryBuffer
        HistoryBuffer.__init__(self, max_length=operator.index(state["max_length"]))
        self.__dict__.update(histories)


def _statistic(owner: Any, name: Any) -> Any:
    """Stands in for the built-in getattr, by which a HistoryBuffer's pickle names its statistics."""
    if owner in (_LoadedHistoryBuffer, HistoryBuffer) and name in _STATISTICS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f"a checkpoint asks for getattr({owner!r}, {name!r}); admitted are HistoryBuffer's {_STATISTICS}"
    )


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Stands in for numpy's _reconstruct, which makes the empty array that a pickle then fills."""
    if kind is np.ndarray and shape == (0,) and code == b"b":
        return np.empty(0, np.int8)
    raise pickle.UnpicklingError(
        f"a checkpoint asks for an array {kind!r} of shape {shape!r}; admitted is numpy's own pickle of one"
    )


def _numeric_dtype(code: Any, *flags: Any) -> np.dtype:
    """Stands in for numpy.dtype, which could also name objects and structures."""
    if isinstance(code, str) and re.fullmatch(r"[<>=|]?[biuf]\d{1,2}", code):
        return np.dtype(code)
    raise pickle.UnpicklingError(f"a checkpoint asks for dtype {code!r}; admitted are numbers and booleans")


def _numeric_scalar(dtype: Any, data: Any) -> np.generic:
    """Stands in for numpy's scalar, which unpickles an object where the dtype says so."""
    if isinstance(dtype, np.dtype) and dtype.kind in "biuf" and type(data) is bytes and len(data) == dtype.itemsize:
        return np.frombuffer(data, dtype)[0]
    raise pickle.UnpicklingError(
        f"a checkpoint asks for a scalar of dtype {dtype!r}; admitted are numbers and booleans"
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
# From 2.6 on torch.load is strict unless told otherwise, and its strict way knows stand-ins.
_STRICT = digit_version(torch.__version__) >= digit_version("2.6.0")


def admit_mmengine_checkpoints() -> None:
    """Let what MMEngine saves be loaded strictly.

    Since torch 2.6 ``torch.load`` unpickles tensors and plain containers alone, MMEngine (up to 0.10.7) puts its
    training history beside them and does not say so when it loads: ``test.py`` and ``--resume`` die. Admitted here is
    that history, HistoryBuffers of numeric arrays and numeric scalars, and nothing else; what could reach further is
    admitted as a stand-in that checks its arguments. Everything else that a checkpoint names is still refused.
    """
    if _STRICT:
        torch.serialization.add_safe_globals([*_PLAIN, *((stands, name) for name, stands in _STAND_INS.items())])
    else:
        strict_pickle.admit({f"{kind.__module__}.{kind.__qualname__}": kind for kind in _PLAIN} | _STAND_INS)
        torch.serialization._weights_only_unpickler = strict_pickle


def load_tensors(file: Any, map_location: Any = None, weights_only: Any = True) -> Any:
    """As :func:`torch.load`, for tensors, plain containers and MMEngine's history alone, whatever the PyTorch.

    Args:
        file: A path, or an open file.
        map_location: The devices to load to.
        weights_only: For callers of torch.load's form; it is always so.

    Raises:
        pickle.UnpicklingError: The file holds anything else; nothing of it has been run.
    """
    if not _STRICT:
        _refuse_program(file)
    return torch.load(file, map_location=map_location, weights_only=True)


def _refuse_program(file: Any) -> None:
    """Refuse an archive of TorchScript, which torch.load starts, strict or not."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise pickle.UnpicklingError("Weights only load failed. It is a program of TorchScript")
    if hasattr(file, "seek"):
        file.seek(0)


class _StrictTorch(ModuleType):
    """PyTorch, as MMEngine's module of checkpoints is to see it where torch.load unpickles everything."""

    load = staticmethod(load_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _load_from_address(
    url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True, **options: Any
) -> Any:
    """As torch.hub.load_state_dict_from_url, which before 2.6 cannot be told how to unpickle."""
    folder = Path(model_dir or Path(torch.hub.get_dir()) / "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(urlparse(url).path).name
    if not path.exists():
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    return load_tensors(path, map_location)


def refuse_code() -> None:
    """Load tensors and plain containers alone wherever MMEngine loads checkpoints.

    PyTorch's loader of addresses (all versions so far) unpickles everything unless it is told otherwise, and MMEngine
    does not tell it; the fork (0.10.12) unpickles everything once the strict way has failed; and before torch 2.6
    torch.load unpickles everything. The user's own calls of torch.load stay what they are, but for those that ask for
    the strict way, which before 2.6 is ours.
    """
    if _STRICT:
        checkpoint.load_url = functools.partial(checkpoint.load_url, weights_only=True)
    else:
        checkpoint.torch = _StrictTorch("torch")
        checkpoint.load_url = _load_from_address
    if hasattr(checkpoint, "_safe_torch_load"):
        checkpoint._safe_torch_load = load_tensors


def _load_from_torchvision(filename: str, map_location: Any = None) -> Any:
    name = filename.partition("://")[2]
    urls = load(Path(mmengine.__file__).parent / "hub" / "torchvision_0.12.json")
    if name not in urls:
        raise ValueError(f"{filename}: MMEngine's list of torchvision's weights has no {name!r}")
    return load_from_http(urls[name], map_location=map_location)


def resolve_torchvision_names() -> None:
    """Let 'torchvision://resnet50' name weights where torchvision is not installed.

    MMEngine (all versions so far) imports torchvision to look the address up, though it ships a list of its own.
    """
    if importlib.util.find_spec("torchvision") is None:
        CheckpointLoader.register_scheme(
            prefixes=("modelzoo://", "torchvision://"), loader=_load_from_torchvision, force=True
        )


def _load_from_local(filename: str, map_location: Any = None) -> Any:
    if not filename.endswith(".safetensors"):
        return load_from_local(filename, map_location)
    # Here, for the package's modules of weights build on what this one repairs.
    from sa_mmdet.checkpoints import files

    loaded = files.read(Path(filename).expanduser())
    if isinstance(map_location, str | torch.device):
        loaded["state_dict"] = {key: value.to(map_location) for key, value in loaded["state_dict"].items()}
    return loaded


def load_safetensors() -> None:
    """Let a safetensors file stand wherever a local checkpoint does, which MMEngine cannot read."""
    CheckpointLoader.register_scheme(prefixes="", loader=_load_from_local, force=True)
