"""Checkpoints whose pickles are written opcode by opcode."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any


class Name(str):
    """A function or class, by its full name."""


class Call:
    """A call, or a new object, and the state that it is given."""

    def __init__(self, function: str, *arguments: Any, state: Any = None, opcode: bytes = pickle.REDUCE):
        self.function, self.arguments, self.state, self.opcode = function, arguments, state, opcode


class Raw(bytes):
    """Opcodes as they are."""


class Memory:
    """A tensor's memory of so many elements of float32, from a member of the archive."""

    def __init__(self, key: str, count: int, kind: str = "FloatStorage"):
        self.key, self.count, self.kind = key, count, kind


def opcodes(value: Any) -> bytes:
    """A value as protocol 2 has it, without the beginning and the end."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Name):
        module, _, name = value.rpartition(".")
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()
    if isinstance(value, Call):
        made = opcodes(Name(value.function)) + opcodes(value.arguments) + value.opcode
        return made if value.state is None else made + opcodes(value.state) + pickle.BUILD
    if isinstance(value, Memory):
        reference = ("storage", Name(f"torch.{value.kind}"), value.key, "cpu", value.count)
        return opcodes(reference) + pickle.BINPERSID
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(opcodes, value)) + pickle.APPENDS
    if isinstance(value, dict):
        pairs = b"".join(opcodes(part) for pair in value.items() for part in pair)
        return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS
    if isinstance(value, str):
        return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
    return pickle.dumps(value, 2)[2:-1]


def tensor(memory: Any, *shape: int, offset: int = 0, strides: tuple[int, ...] | None = None) -> Call:
    """A tensor as torch.save writes it."""
    if strides is None:
        strides = tuple(int(_product(shape[axis + 1 :])) for axis in range(len(shape)))
    hooks = Call("collections.OrderedDict")
    return Call("torch._utils._rebuild_tensor_v2", memory, offset, shape, strides, False, hooks)


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def history(log: Any, count: Any = None, longest: Any = 1000) -> Call:
    """MMEngine's HistoryBuffer with arrays, or something else, as its histories."""
    state = dict(max_length=longest, _log_history=log, _count_history=log if count is None else count)
    name = "mmengine.logging.history_buffer.HistoryBuffer"
    return Call(name, state=state, opcode=pickle.NEWOBJ)


def dtype(code: str, *state: Any) -> Call:
    """A type of numpy, with a state."""
    return Call("numpy.dtype", code, False, True, state=state or (3, "<", None, None, None, -1, -1, 0))


def array(kind: Any, shape: tuple[int, ...], data: bytes) -> Call:
    """An array of numpy."""
    empty = (Name("numpy.ndarray"), (0,), Call("_codecs.encode", "b", "latin1"))
    content = Call("_codecs.encode", data.decode("latin1"), "latin1")
    return Call("numpy.core.multiarray._reconstruct", *empty, state=(1, shape, kind, False, content))


def checkpoint(
    path: Path, value: Any, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Path:
    """Write a checkpoint.

    Args:
        path: The file.
        value: What the pickle says; bytes in :class:`Raw` are opcodes.
        members: The tensors' memory by name.
        method: How the archive is compressed.
    """
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes(value) + pickle.STOP)
        archive.writestr("archive/version", "3\n")
        for name, data in (members or {}).items():
            archive.writestr(f"archive/data/{name}", data)
    return path
