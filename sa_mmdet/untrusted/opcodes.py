"""Read a pickle into inert records, opcode by opcode; from the pickle module come the opcodes' names alone."""

import io
import os
import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from .errors import RefusedFileError
from .records import Call, Dict, Global, Set, Stored, check_extent

MOST_VALUES = 5_000_000  # in a checkpoint; the largest of MMDetection's zoo has about a hundred thousand
_LONGEST_INTEGER = 16  # bytes; the seeds of random generators have 8
_LONGEST_NAME = 500  # characters
_CHUNK = 1 << 16  # bytes that may be asked for without a look at how many are left


class PickleReader:
    """Reads one pickle.

    Args:
        file: Where it begins.
        encoding: Of the text that Python 2 wrote.
        most_values: How many values it may hold.
    """

    def __init__(self, file: BinaryIO, encoding: str = "utf-8", most_values: int | None = MOST_VALUES):
        self._file, self._encoding, self._most = file, encoding, most_values
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.stored: list[Stored] = []  # all references to the outside, in order

    def read(self) -> Any:
        """Read up to the end of the pickle.

        Returns:
            A record, see :mod:`sa_mmdet.untrusted.records`.

        Raises:
            RefusedFileError: It is damaged, or holds an opcode that no checkpoint has.
        """
        begin = self._file.tell()
        try:
            record = self._run()
        except (IndexError, KeyError, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise RefusedFileError(f"is damaged: its pickle cannot be followed ({type(error).__name__})") from error
        check_extent(record, self._file.tell() - begin)
        return record

    def _run(self) -> Any:
        count = 0
        while True:
            code = self._take(1)
            if code == pickle.STOP:
                return self._stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise RefusedFileError(f"makes objects in a way that no checkpoint does (opcode {code!r})")
            action(self)
            count += 1
            if self._most is not None and count > 4 * self._most:
                raise RefusedFileError(f"holds more than {self._most} values, which no checkpoint does")

    def _take(self, count: int) -> bytes:
        if count > _CHUNK:  # a buffered file would set as many bytes aside, whether they are there or not
            position = self._file.tell()
            left = self._file.seek(0, os.SEEK_END) - position
            self._file.seek(position)
            if count > left:
                raise RefusedFileError("is truncated: download or copy it again")
        data = self._file.read(count)
        if len(data) < count:
            raise RefusedFileError("is truncated: download or copy it again")
        return data

    def _number(self, form: str) -> int:
        [number] = struct.unpack(form, self._take(struct.calcsize(form)))
        return number

    def _line(self) -> str:
        line = self._file.readline(_LONGEST_NAME)
        if not line.endswith(b"\n"):
            raise RefusedFileError("is damaged: a name in its pickle has no end")
        return line[:-1].decode("utf-8")

    def _push(self, record: Any) -> None:
        self._stack.append(record)

    def _text(self, form: str) -> None:
        self._push(self._take(self._number(form)).decode("utf-8", "surrogatepass"))

    def _old_text(self, form: str) -> None:
        self._push(self._take(self._number(form)).decode(self._encoding))

    def _bytes(self, form: str) -> None:
        self._push(self._take(self._number(form)))

    def _byte_array(self) -> None:
        self._push(bytearray(self._take(self._number("<Q"))))

    def _integer(self, form: str) -> None:
        length = self._number(form)
        if not 0 <= length <= _LONGEST_INTEGER:
            raise RefusedFileError(f"holds an integer of {length} bytes, which no checkpoint does")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _float(self) -> None:
        self._push(struct.unpack(">d", self._take(8))[0])

    def _named(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedFileError("is damaged: a name in its pickle is not text")
        # Protocol 2, which torch.save writes, uses the names of Python 2.
        self._push(Global(f"{'builtins' if module == '__builtin__' else module}.{name}"))

    def _global(self) -> None:
        self._named(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._named(module, name)

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        found, self._stack = self._stack, self._marks.pop()
        return found

    def _tuple(self, count: int | None = None) -> None:
        if count is None:
            parts = self._since_mark()
        else:
            parts = self._stack[-count:]
            if len(parts) < count:
                raise IndexError
            del self._stack[-count:]
        self._push(tuple(parts))

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise RefusedFileError(f"appends to a {_kind(target)}, which no checkpoint does")
        target += values

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) not in (Dict, Call) or len(values) % 2:
            raise RefusedFileError(f"sets items of a {_kind(target)}, which no checkpoint does")
        target.items += zip(values[::2], values[1::2], strict=True)

    def _add_items(self) -> None:
        values, target = self._since_mark(), self._stack[-1]
        if type(target) is not Set or target.frozen:
            raise RefusedFileError(f"adds members to a {_kind(target)}, which no checkpoint does")
        target.members += values

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise RefusedFileError(
                f"holds more than weights (it calls a {_kind(function)}), which is refused and was not run"
            )
        self._push(Call(function, arguments))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is not Call:
            raise RefusedFileError(f"gives a state to a {_kind(target)}, which no checkpoint does")
        target.states.append(state)

    def _persistent(self) -> None:
        self._push(Stored(self._stack.pop()))
        self.stored.append(self._stack[-1])

    def _get(self, form: str) -> None:
        self._push(self._memo[self._number(form)])

    def _put(self, form: str) -> None:
        self._memo[self._number(form)] = self._stack[-1]

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _protocol(self) -> None:
        version = self._number("B")
        if version > pickle.HIGHEST_PROTOCOL:
            raise RefusedFileError(f"is damaged, or of a later Python: its pickle has protocol {version}")


def _kind(record: Any) -> str:
    return f"result of {record.function.name}" if type(record) is Call else type(record).__name__.lower()


_ACTIONS: dict[bytes, Callable[[PickleReader], object]] = {
    pickle.PROTO: PickleReader._protocol,
    pickle.FRAME: lambda self: self._take(8),
    pickle.NONE: lambda self: self._push(None),
    pickle.NEWTRUE: lambda self: self._push(True),
    pickle.NEWFALSE: lambda self: self._push(False),
    pickle.BININT: lambda self: self._push(self._number("<i")),
    pickle.BININT1: lambda self: self._push(self._number("B")),
    pickle.BININT2: lambda self: self._push(self._number("<H")),
    pickle.LONG1: lambda self: self._integer("B"),
    pickle.LONG4: lambda self: self._integer("<i"),
    pickle.BINFLOAT: PickleReader._float,
    pickle.SHORT_BINUNICODE: lambda self: self._text("B"),
    pickle.BINUNICODE: lambda self: self._text("<I"),
    pickle.BINUNICODE8: lambda self: self._text("<Q"),
    pickle.SHORT_BINSTRING: lambda self: self._old_text("B"),
    pickle.BINSTRING: lambda self: self._old_text("<I"),
    pickle.SHORT_BINBYTES: lambda self: self._bytes("B"),
    pickle.BINBYTES: lambda self: self._bytes("<I"),
    pickle.BINBYTES8: lambda self: self._bytes("<Q"),
    pickle.BYTEARRAY8: PickleReader._byte_array,
    pickle.MARK: PickleReader._mark,
    pickle.EMPTY_TUPLE: lambda self: self._push(()),
    pickle.TUPLE: PickleReader._tuple,
    pickle.TUPLE1: lambda self: self._tuple(1),
    pickle.TUPLE2: lambda self: self._tuple(2),
    pickle.TUPLE3: lambda self: self._tuple(3),
    pickle.EMPTY_LIST: lambda self: self._push([]),
    pickle.APPEND: lambda self: self._append([self._stack.pop()]),
    pickle.APPENDS: lambda self: self._append(self._since_mark()),
    pickle.EMPTY_DICT: lambda self: self._push(Dict()),
    pickle.SETITEM: lambda self: self._set_items([self._stack.pop(), self._stack.pop()][::-1]),
    pickle.SETITEMS: lambda self: self._set_items(self._since_mark()),
    pickle.EMPTY_SET: lambda self: self._push(Set()),
    pickle.ADDITEMS: PickleReader._add_items,
    pickle.FROZENSET: lambda self: self._push(Set(self._since_mark(), frozen=True)),
    pickle.GLOBAL: PickleReader._global,
    pickle.STACK_GLOBAL: PickleReader._stack_global,
    pickle.REDUCE: PickleReader._call,
    pickle.NEWOBJ: PickleReader._call,
    pickle.BUILD: PickleReader._build,
    pickle.BINPERSID: PickleReader._persistent,
    pickle.BINGET: lambda self: self._get("B"),
    pickle.LONG_BINGET: lambda self: self._get("<I"),
    pickle.BINPUT: lambda self: self._put("B"),
    pickle.LONG_BINPUT: lambda self: self._put("<I"),
    pickle.MEMOIZE: PickleReader._memoize,
    pickle.POP: lambda self: self._stack.pop(),
    pickle.DUP: lambda self: self._push(self._stack[-1]),
    pickle.POP_MARK: PickleReader._since_mark,
}


def read_records(data: bytes) -> Any:
    """As :meth:`PickleReader.read`, of bytes."""
    return PickleReader(io.BytesIO(data)).read()
