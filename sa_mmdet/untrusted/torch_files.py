"""Files that :func:`torch.save` wrote, in both of its formats, and pickles: read without running anything they hold."""

import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sa_mmdet.messages import one_line

from . import tensors, values
from .builder import Builder, Factory, only_call, refused
from .errors import RefusedFileError
from .opcodes import MOST_VALUES, PickleReader
from .records import Call, Stored
from .tensors import Storage, StoredReference, stored_reference

_MAGIC = 0x1950A86A20F9469CFC6C  # with which the format from before PyTorch 1.6 begins
_LEGACY_PROTOCOL = 1001
_INFLATED = 8  # times the file's size: weights hardly compress, and torch.save does not compress at all
_SMALL = 1 << 20  # bytes that any file may inflate to
_DEEPEST = 3  # tensors' own files inside of pickles inside of ...

Read = Callable[[StoredReference], Any]  # gives torch.UntypedStorage


def read_torch(source: str | Path | BinaryIO, map_location: Any = None) -> Any:
    """As :func:`torch.load`, for tensors, plain containers, numpy's numbers and MMEngine's history alone.

    The file is read into inert records first; they are checked, and tensors are built from what has been checked. What
    the user allowed with :func:`torch.serialization.add_safe_globals` is built as the user's own.

    Args:
        source: A path, or a file open for reading bytes.
        map_location: As torch.load takes it.

    Raises:
        FileNotFoundError: There is no such file.
        RefusedFileError: The file is damaged or holds anything else; the message is one line and names it.
    """
    if isinstance(source, str | Path):
        with open(source, "rb") as file, _named(source):
            return _read(file, map_location)
    with _named("the checkpoint"):
        return _read(source, map_location)


def read_pickle(source: str | Path | BinaryIO) -> Any:
    """As :func:`pickle.load`, for plain containers, numpy's numbers and tensors alone.

    Args:
        source: A path, or a file open for reading bytes.

    Raises:
        FileNotFoundError: There is no such file.
        RefusedFileError: The file is damaged or holds anything else; the message is one line and names it.
    """
    if isinstance(source, str | Path):
        with open(source, "rb") as file, _named(source):
            return _read_pickle(file)
    with _named("the pickle"):
        return _read_pickle(source)


@contextmanager
def _named(name: str | Path) -> Iterator[None]:
    """Begin each error with the file's name."""
    try:
        yield
    except RefusedFileError as error:
        raise RefusedFileError(f"{name}: {one_line(error)}") from error
    except Exception as error:  # zipfile and PyTorch raise anything on a broken file
        reason = one_line(error, 200)
        raise RefusedFileError(
            f"{name}: cannot be read and may be damaged: {type(error).__name__}: {reason}"
        ) from error


def _read_pickle(file: BinaryIO) -> Any:
    def nothing(reference: Any) -> Any:
        raise refused("a reference to something outside of it")

    return _builder(nothing).build(PickleReader(file, most_values=None).read())


def _read(file: BinaryIO, map_location: Any) -> Any:
    if not file.seekable():
        file = io.BytesIO(file.read())
    begin = file.tell()
    head = file.read(4)
    file.seek(begin)
    if head.startswith(b"PK\x03\x04"):
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:  # its table of contents is at the end
            raise RefusedFileError("is truncated or damaged: download or copy it again") from error
        with archive:
            return _read_archive(archive, file.seek(0, os.SEEK_END), map_location)
    if not head.startswith(b"\x80"):
        raise RefusedFileError("is not a file that torch.save wrote")
    return _read_legacy(file, map_location)


def _builder(stored: Callable[[Any], Any], depth: int = 0) -> Builder:
    factories = {**values.FACTORIES, **tensors.FACTORIES, "torch.storage._load_from_bytes": _memory_of_bytes(depth)}
    return Builder(factories, tensors.CONSTANTS, _allowed_by_the_user(), stored)


def _allowed_by_the_user() -> dict[str, Any]:
    """The names of torch.serialization.add_safe_globals, which came with PyTorch 2.4, without PyTorch's own."""
    entries: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
    pairs = [
        entry[::-1] if isinstance(entry, tuple) else (f"{entry.__module__}.{entry.__qualname__}", entry)
        for entry in entries
    ]
    return {name: value for name, value in pairs if not name.startswith("torch.")}


def _memory_of_bytes(depth: int) -> Factory:
    """Plain pickle's form of a tensor's memory: a file of torch.save within the pickle."""

    def read(builder: Builder, call: Call) -> Storage:
        only_call(call)
        [data] = builder.arguments(call, 1)
        if type(data) is not bytes or depth >= _DEEPEST:
            raise refused("torch.storage._load_from_bytes")
        found = _read_legacy(io.BytesIO(data), "cpu", depth + 1)
        if type(found) is not Storage:
            raise refused("torch.storage._load_from_bytes of something other than memory")
        return found

    return read


def _values(record: Any, read: Read, map_location: Any, depth: int = 0) -> Any:
    memories: dict[str, Any] = {}

    def stored(reference: Any) -> Storage:
        wanted = stored_reference(reference)
        if wanted.key not in memories:
            memories[wanted.key] = tensors.relocate(read(wanted), wanted.location, map_location)
        memory = memories[wanted.key]
        if wanted.size > memory.nbytes():
            raise RefusedFileError(f"is damaged: two tensors give the memory {wanted.key!r} different sizes")
        return Storage(memory, wanted.dtype, wanted.count)

    return _builder(stored, depth).build(record)


def _read_archive(archive: zipfile.ZipFile, size: int, map_location: Any) -> Any:
    names = archive.namelist()
    found = [name for name in names if name.endswith("/data.pkl")]
    if not found:
        raise RefusedFileError("is a zip archive without a checkpoint in it")
    folder = found[0].removesuffix("data.pkl")
    if len(found) > 1 or len(set(names)) < len(names):
        raise RefusedFileError("is a zip archive that holds a name twice")
    if f"{folder}constants.pkl" in names:
        raise RefusedFileError("is a TorchScript program, which is refused and was not run: save its state dict alone")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != sys.byteorder.encode():
        raise RefusedFileError("was saved on a machine with another order of bytes")
    left = _INFLATED * size + _SMALL

    def take(name: str) -> bytearray:
        """The content of a member, whose checksum is compared, within what all of them may inflate to."""
        nonlocal left
        info = archive.getinfo(name)
        left -= info.file_size
        if left < 0:
            raise RefusedFileError(
                f"inflates to more than {_INFLATED} times its size, which weights do not: save it again with torch.save"
            )
        data = bytearray(info.file_size)
        with archive.open(info) as member:
            filled = 0
            while count := member.readinto(memoryview(data)[filled : filled + (1 << 24)]):  # type: ignore[attr-defined]
                filled += count
        if filled < len(data):
            raise RefusedFileError("is truncated: download or copy it again")
        return data

    def read(wanted: StoredReference) -> Any:
        data = take(f"{folder}data/{wanted.key}")
        if len(data) != wanted.size:
            raise RefusedFileError(f"is damaged: memory of {len(data)} bytes where {wanted.size} belong")
        return _memory(data)

    record = PickleReader(io.BytesIO(take(found[0])), most_values=MOST_VALUES).read()
    return _values(record, read, map_location)


def _memory(data: bytearray) -> Any:
    if not data:
        return _untyped(torch.empty(0, dtype=torch.uint8))
    return _untyped(torch.frombuffer(data, dtype=torch.uint8))


def _untyped(tensor: torch.Tensor) -> Any:
    """A tensor's memory; PyTorch before 2.0 has no ``untyped_storage``."""
    if hasattr(tensor, "untyped_storage"):
        return tensor.untyped_storage()
    storage = tensor.storage()
    return storage.untyped() if hasattr(storage, "untyped") else storage._untyped()


def _read_legacy(file: BinaryIO, map_location: Any, depth: int = 0) -> Any:
    """Several pickles, followed by the tensors' memory."""
    if PickleReader(file).read() != _MAGIC or PickleReader(file).read() != _LEGACY_PROTOCOL:
        raise RefusedFileError("is not a file that torch.save wrote")
    system = _builder(lambda reference: None).build(PickleReader(file).read())
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise RefusedFileError("was saved on a machine with another order of bytes")
    main = PickleReader(file)
    record = main.read()
    wanted = {reference.key: reference for reference in map(_checked, main.stored)}
    keys = PickleReader(file).read()
    if type(keys) is not list or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise RefusedFileError("is damaged: its list of memories is not one")
    memories = {key: _next_memory(file, wanted.get(key)) for key in keys}

    def read(reference: StoredReference) -> Any:
        if reference.key not in memories:
            raise RefusedFileError(f"is damaged: it lacks the memory {reference.key!r} of a tensor")
        return memories[reference.key]

    return _values(record, read, map_location, depth)


def _checked(stored: Stored) -> StoredReference:
    return stored_reference(stored.reference)


def _next_memory(file: BinaryIO, wanted: StoredReference | None) -> Any:
    if wanted is None:
        raise RefusedFileError("is damaged: it holds memory that no tensor uses")
    position = file.tell()
    left = file.seek(0, os.SEEK_END) - position - 8
    file.seek(position)
    count = int.from_bytes(file.read(8), "little", signed=True)
    if left < 0 or count != wanted.count or wanted.size > left:
        raise RefusedFileError("is truncated: download or copy it again")
    data = bytearray(wanted.size)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise RefusedFileError("is truncated: download or copy it again")
    return _memory(data)
