"""Values from inert records: each name that a file uses has a factory, which checks what the file gives to it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .errors import RefusedFileError
from .records import Call, Dict, Global, Set, Stored

Factory = Callable[["Builder", Call], Any]
KEYS = (str, int, float, bool, bytes, type(None), np.generic)
# A file can choose tuples, and integers beyond this limit, that all hash to the same number.
_MOST_TUPLE_KEYS = 10_000
_LARGEST_KEY = 2**60


def refused(what: str) -> RefusedFileError:
    """The error for what a file asks for and may not have.

    Args:
        what: Such as 'os.system'.
    """
    return RefusedFileError(
        f"holds more than weights ({what[:200]!r}), which is refused and was not run: if you trust the file, save its "
        "state dict alone"
    )


class Builder:
    """Builds values from records.

    Args:
        factories: For each name that a file may call, what checks the call and computes its result.
        constants: Each name that stands for a value, and the value.
        users: What the user has allowed by name; it is called as it is.
        stored: Gives what a reference to the outside stands for.
    """

    def __init__(
        self,
        factories: Mapping[str, Factory],
        constants: Mapping[str, Any],
        users: Mapping[str, Any],
        stored: Callable[[Any], Any],
    ):
        self._factories, self._constants, self._users, self._stored = factories, constants, users, stored
        # What the file refers to twice is one object. Records are kept, so that no other one gets their identity.
        self._built: dict[int, tuple[Any, Any]] = {}
        self._tuple_keys = 0

    def build(self, record: Any) -> Any:
        """The value of a record, whose nesting has been checked.

        Raises:
            RefusedFileError: The record asks for something that is not admitted.
        """
        if type(record) in (str, int, float, bool, bytes, bytearray, type(None)):
            return record
        if type(record) is Global:
            return self._constant(record.name)
        if id(record) not in self._built:
            self._built[id(record)] = record, self._container(record)
        return self._built[id(record)][1]

    def arguments(self, call: Call, fewest: int, most: int | None = None) -> list[Any]:
        """A call's arguments, of which there must be so many.

        Raises:
            RefusedFileError: There are more or fewer.
        """
        if not fewest <= len(call.arguments) <= (fewest if most is None else most):
            raise refused(f"{call.function.name} with {len(call.arguments)} arguments")
        return [self.build(argument) for argument in call.arguments]

    def _constant(self, name: str) -> Any:
        for known in (self._constants, self._users):
            if name in known:
                return known[name]
        raise refused(name)

    def _container(self, record: Any) -> Any:
        if type(record) is list:
            return [self.build(part) for part in record]
        if type(record) is tuple:
            return tuple(self.build(part) for part in record)
        if type(record) is Dict:
            return dict(self.pairs(record.items))
        if type(record) is Set:
            members = [self._key(member) for member in record.members]
            return frozenset(members) if record.frozen else set(members)
        if type(record) is Stored:
            return self._stored(record.reference)
        return self._called(record)

    def _called(self, call: Call) -> Any:
        name = call.function.name
        if name in self._factories:
            return self._factories[name](self, call)
        if name in self._users:
            return self._user_object(call)
        raise refused(name)

    def _user_object(self, call: Call) -> Any:
        """As pickle makes it; the user has said that this class or function is safe."""
        value = self._users[call.function.name](*self.arguments(call, 0, len(call.arguments)))
        for key, item in self.pairs(call.items):
            value[key] = item
        for state in map(self.build, call.states):
            if hasattr(value, "__setstate__"):
                value.__setstate__(state)
            else:
                value.__dict__.update(state)
        return value

    def pairs(self, items: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """The pairs of a dict, whose keys must be plain values."""
        return [(self._key(key), self.build(value)) for key, value in items]

    def _key(self, record: Any) -> Any:
        key = self.build(record)
        if type(key) is tuple and all(isinstance(part, KEYS) for part in key):
            self._tuple_keys += 1
            if self._tuple_keys <= _MOST_TUPLE_KEYS:
                return key
        elif type(key) is int and abs(key) > _LARGEST_KEY:
            raise RefusedFileError("has integers as keys that no checkpoint has")
        elif isinstance(key, KEYS):
            return key
        raise refused(f"a key that is a {type(key).__name__}")


def only_call(call: Call) -> None:
    """Refuse a call after which the file puts something into the result.

    Raises:
        RefusedFileError: It does.
    """
    if call.items or call.states:
        raise refused(f"{call.function.name} with a state of the file's own")
