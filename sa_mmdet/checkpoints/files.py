"""Read and write files of weights: PyTorch's and safetensors', without ever running what a file holds."""

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sa_mmdet.atomic_write import written_aside
from sa_mmdet.compat.checkpoints import load_tensors

_METADATA = "sa_mmdet"  # the key of safetensors' header that holds ours
_HEADER_LIMIT = 100 << 20  # bytes, as the safetensors library has it
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def read(path: str | Path) -> dict[str, Any]:
    """Read a file of weights, told by its content, not by its name.

    Args:
        path: A file of :func:`torch.save` (whatever its suffix) or of safetensors.

    Returns:
        What the file holds: a state dict, or a dict that holds one. Of safetensors: ``state_dict`` and ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, cut off, of another format, or asks for more than tensors and plain containers
            (nothing of which is run); the message is one line and names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: the file is empty: download or copy it again")
    if _is_safetensors(head):
        return _read_safetensors(path)
    # torch.save writes a zip archive, or, before torch 1.6, pickles of which the first begins so.
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        kind = "a web page" if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")) else "no file of weights"
        raise ValueError(
            f"{path}: is {kind}: expected what torch.save or safetensors writes, found a file that begins with "
            f"{head[:16]!r}"
        )
    try:
        return load_tensors(path, map_location="cpu")
    except Exception as error:  # whatever a broken file makes of torch.load
        raise ValueError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    refused = "Unsupported global" in text or "WeightsUnpickler error" in text or "weights_only" in text.lower()
    if refused and "unexpected EOF" not in text:
        asked = text.partition("GLOBAL ")[2].split(" ")[0] or text.rpartition("WeightsUnpickler error:")[2].strip()
        return (
            f"holds more than weights ({asked[:200]}), which is refused and not run: save its state dict alone, where "
            "the file can be trusted"
        )
    if "central directory" in text:  # it stands at an archive's end
        return "is cut off: download or copy it again"
    return f"cannot be read, cut off perhaps: {type(error).__name__}: {text[:200]}"


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and 2 <= int.from_bytes(head[:8], "little") <= _HEADER_LIMIT and head[8:9] == b"{"


def _safetensors() -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError("safetensors files need the library of that name: pip install safetensors")
    import safetensors.torch

    return safetensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            metadata = file.metadata() or {}
        meta = json.loads(metadata.get(_METADATA, "{}"))
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: not a readable safetensors file, cut off perhaps: {text[:200]}") from error
    return dict(state_dict=state, meta=meta if isinstance(meta, dict) else {})


def tensors_of(loaded: Any, path: str | Path) -> dict[str, Tensor]:
    """The state dict in what :func:`read` returned, checked.

    Looks into dicts that hold one, as ``state_dict``, ``model`` or alone under another name.

    Raises:
        ValueError: There is none, a key is no text, or an entry is no plain tensor.
    """
    state = _innermost(loaded)
    if state is None:
        raise ValueError(f"{path}: holds no state dict: {_described(loaded)}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} is no text")
        if isinstance(value, Tensor):
            _check_tensor(key, value, path)
    return {key: value.detach() for key, value in state.items() if isinstance(value, Tensor)}


def _innermost(loaded: Any, depth: int = 3) -> Mapping | None:
    if not isinstance(loaded, Mapping) or depth == 0:
        return None
    if sum(isinstance(value, Tensor) for value in loaded.values()) > 1:
        return loaded
    inner = {key: found for key, value in loaded.items() if (found := _innermost(value, depth - 1)) is not None}
    for wrapper in ("state_dict", "model", "model_state_dict", "net"):
        if wrapper in inner:
            return inner[wrapper]
    return next(iter(inner.values())) if len(inner) == 1 else None


def _described(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        return f"it is a dict of {', '.join(repr(key) for key in list(loaded)[:4]) or 'nothing'}"
    return f"it is a {type(loaded).__name__}"


def _check_tensor(key: str, tensor: Tensor, path: str | Path) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{path}: {key} is no plain tensor of numbers: {tensor.layout}, {tensor.dtype}, on {tensor.device}"
        )
    held = getattr(tensor, "untyped_storage", tensor.storage)().nbytes() // tensor.element_size()
    if tensor.numel() > held:  # a view that repeats its few elements, as many times as a file likes
        raise ValueError(f"{path}: {key} of shape {tuple(tensor.shape)} stands on {held} numbers")


def write(path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Write weights, aside first and then renamed, so that nothing is ever half there.

    Args:
        path: Where to; '.safetensors' chooses that format, all else is :func:`torch.save`'s.
        state: The tensors.
        meta: What is known of them, as JSON can say it: in a safetensors file it is in the header.

    Raises:
        ValueError: The folder is missing, or the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}: make it first")
    # Plain in every format: what is a version or a config of some library would be refused on reading.
    header = json.dumps(dict(meta or {}), default=str)
    # Tensors that share memory, or a part of a larger one, would take its space and be refused by safetensors.
    state = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    try:
        with written_aside(path) as aside:
            if path.suffix == ".safetensors":
                metadata = {"format": "pt", _METADATA: header}
                _safetensors().torch.save_file(state, aside, metadata=metadata)
            else:
                torch.save(dict(meta=json.loads(header), state_dict=state), aside)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be written: {error}") from error


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that hold NaN or Inf."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not math.isfinite(value.abs().sum())]
    if bad:
        raise ValueError(f"{path}: holds NaN or Inf, in {', '.join(bad[:4])}")
