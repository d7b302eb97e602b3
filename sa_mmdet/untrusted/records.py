"""What a pickle says, as inert records: nothing that a file names is imported, called or hashed.

Numbers, strings, bytes, None, lists and tuples stand for themselves. Lists and tuples are never compared or hashed,
and dicts are lists of pairs, since a file's keys could make either one slow or crash it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import RefusedFileError

DEEPEST = 100  # levels of nesting; MMEngine's checkpoints have about ten
_CHARACTERS = 64  # that count as one value, so that a long string cannot be repeated for nothing
_FREE = 1_000_000  # values that any file may unfold to, however small it is


class Global(NamedTuple):
    """A function, class or constant, by its name."""

    name: str


@dataclass(eq=False)
class Call:
    """A call, or a new object, with what was put into it afterwards."""

    function: Global
    arguments: tuple[Any, ...]
    items: list[tuple[Any, Any]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Dict:
    """A dict, by its pairs in order."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Set:
    """A set or frozenset, by its members in order."""

    members: list[Any] = field(default_factory=list)
    frozen: bool = False


@dataclass(eq=False)
class Stored:
    """A reference to something outside the pickle: the memory of a tensor."""

    reference: Any


def _flat(pairs: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
    for pair in pairs:
        yield from pair


def _parts(record: Any) -> list[Any]:
    if type(record) in (list, tuple):
        return list(record)
    if type(record) is Dict:
        return list(_flat(record.items))
    if type(record) is dict:
        return list(_flat(record.items()))
    if type(record) is Set:
        return record.members
    if type(record) is Call:
        return [*record.arguments, *_flat(record.items), *record.states]
    return [record.reference] if type(record) is Stored else []


def _own_size(record: Any) -> int:
    return 1 + (len(record) // _CHARACTERS if isinstance(record, str | bytes | bytearray) else 0)


def check_extent(root: Any, size: int) -> None:
    """Refuse what is small in a file and endless to walk through: nested references, cycles, deep nesting.

    Args:
        root: A record, or plain Python containers.
        size: The bytes that it took in the file.

    Raises:
        RefusedFileError: It refers to itself, is nested more than :data:`DEEPEST` levels deep, or unfolds, with each
            reference counted as what it refers to, to far more values than its bytes could spell out.
    """
    limit = _FREE + size
    extents: dict[int, tuple[int, int]] = {}  # of each container: values, levels
    open_: set[int] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        record, visited = stack.pop()
        parts = [] if id(record) in extents else _parts(record)
        if not parts:
            continue
        if visited:
            open_.discard(id(record))
            inner = [extents.get(id(part), (_own_size(part), 0)) for part in parts]
            extents[id(record)] = (1 + sum(count for count, _ in inner), 1 + max(depth for _, depth in inner))
            values, depth = extents[id(record)]
            if depth > DEEPEST:
                raise RefusedFileError(f"is nested more than {DEEPEST} levels deep, which no such file is")
            if values > limit:
                raise RefusedFileError(
                    f"refers to its own parts again and again: its {size} bytes unfold to more than {limit} values"
                )
        elif id(record) in open_:
            raise RefusedFileError("holds a container that contains itself, which no such file does")
        else:
            open_.add(id(record))
            stack.append((record, True))
            stack += [(part, False) for part in parts]
