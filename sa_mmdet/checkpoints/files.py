"""Read and write files of weights, PyTorch's and safetensors', without ever running what a file holds."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import checkpoint
from torch import Tensor

from sa_mmdet.atomic_write import atomic_write
from sa_mmdet.compat import load_tensors
from sa_mmdet.compat.old_torch import stored_numbers
from sa_mmdet.messages import listed, one_line
from sa_mmdet.untrusted import check_extent

_METADATA = "sa_mmdet"  # the key of safetensors' header that holds ours
_HEADER_LIMIT = 100 << 20  # bytes, the safetensors library's own limit
_LONGEST_KEY = 1000  # characters
_DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def read(path: str | Path) -> dict[str, Any]:
    """Read a file of weights; its content decides about its format, not its name.

    Args:
        path: A file that :func:`torch.save` (whatever its suffix) or safetensors wrote.

    Returns:
        What the file holds: a state dict, or a dict that holds one. From safetensors: ``state_dict`` and ``meta``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is empty, truncated, in another format, or asks for more than tensors and plain containers
            (none of which is run); the message is one line and names the file.
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
        page = head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html"))
        raise ValueError(
            f"{path}: is {'a web page' if page else 'not a file of weights'}: expected what torch.save or safetensors "
            f"writes, found a file that begins with {head[:16]!r}"
        )
    return load_tensors(path, map_location="cpu")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and 2 <= int.from_bytes(head[:8], "little") <= _HEADER_LIMIT and head[8:9] == b"{"


def _safetensors() -> Any:
    if importlib.util.find_spec("safetensors") is None:
        raise ValueError("safetensors files need the package safetensors: pip install safetensors")
    import safetensors.torch

    return safetensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    library = _safetensors()
    try:
        with library.safe_open(path, framework="pt", device="cpu") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            metadata = file.metadata() or {}
        meta = json.loads(metadata.get(_METADATA, "{}"))
        check_extent(meta, len(metadata.get(_METADATA, "")))
    except Exception as error:
        raise ValueError(
            f"{path}: is not a readable safetensors file and may be truncated: {one_line(error, 200)}"
        ) from error
    return dict(state_dict=state, meta=meta if isinstance(meta, dict) else {})


def tensors_of(loaded: Any, path: str | Path) -> dict[str, Tensor]:
    """Find the state dict in what :func:`read` returned, and check it.

    Looks into dicts that hold one, under ``state_dict``, ``model`` or as the only one under another name.

    Args:
        loaded: What was read.
        path: The file, which errors name.

    Raises:
        ValueError: There is no state dict, a key is not a string, or a tensor is not a plain one.
    """
    state = _innermost(loaded)
    if state is None:
        raise ValueError(f"{path}: holds no state dict: {_described(loaded)}")
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {listed([repr(key)])} is not a string")
        if not key.isprintable() or len(key) > _LONGEST_KEY:  # keys are printed, and name files of messages
            raise ValueError(f"{path}: the key {key[:80]!r} is not a name: it is too long, or not printable")
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
        return f"it is a dict of {listed(map(repr, loaded)) or 'nothing'}"
    return f"it is a {type(loaded).__name__}"


def _check_tensor(key: str, tensor: Tensor, path: str | Path) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{path}: {key} is not a plain tensor of numbers: {tensor.layout}, {tensor.dtype}, on {tensor.device}"
        )
    stored = stored_numbers(tensor)
    if tensor.numel() > stored:  # a view that repeats its few elements as many times as a file likes
        raise ValueError(f"{path}: {key} of shape {tuple(tensor.shape)} repeats the {stored} numbers that are stored")


def write(path: str | Path, state: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Write weights atomically.

    Args:
        path: The file; the suffix '.safetensors' chooses that format, any other one :func:`torch.save`'s.
        state: The tensors.
        meta: What is known about them, in JSON's types; in a safetensors file it is in the header.

    Raises:
        ValueError: The folder does not exist, or the file cannot be written.
    """
    path = Path(path)
    # As plain text in both formats: reading would refuse a version or config object of some library.
    header = json.dumps(_as_json(meta or {}))
    # Views would be saved with the whole memory that they share, and safetensors refuses them.
    state = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    try:
        with atomic_write(path) as temporary:
            if path.suffix == ".safetensors":
                metadata = {"format": "pt", _METADATA: header}
                _safetensors().torch.save_file(state, temporary, metadata=metadata)
            else:
                torch.save(dict(meta=json.loads(header), state_dict=state), temporary)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be written: {error}") from error


def _as_json(value: Any) -> Any:
    """Values as JSON has them: names as text, and everything that JSON does not know as text."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_json(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse weights that hold NaN or Inf.

    Raises:
        ValueError: Some do; the message names the first.
    """
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise ValueError(f"{path}: holds NaN or Inf, in {listed(bad)}")


@checkpoint.CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a local checkpoint for MMEngine, which cannot read safetensors files itself.

    Args:
        filename: The file.
        map_location: The devices to load to; of a safetensors file a device or its name.
    """
    if not filename.endswith(".safetensors"):
        return checkpoint.load_from_local(filename, map_location)
    loaded = read(Path(filename).expanduser())
    if isinstance(map_location, str | torch.device):
        loaded["state_dict"] = {key: value.to(map_location) for key, value in loaded["state_dict"].items()}
    return loaded
