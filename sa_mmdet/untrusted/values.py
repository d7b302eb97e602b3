"""Plain values from inert records: containers, numbers, MMEngine's history and instances, each checked first."""

from collections import Counter, OrderedDict
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.structures import InstanceData

from . import arrays
from .builder import KEYS, Builder, Factory, only_call, refused
from .records import Call, Dict, Set

_STATISTICS = ("statistics_methods", "_statistics_methods")
_LONGEST_HISTORY = 10**9


def _ordered_dict(builder: Builder, call: Call) -> OrderedDict:
    values = builder.arguments(call, 0, 1)
    if values and not (
        isinstance(values[0], list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in values[0])
    ):
        raise refused("collections.OrderedDict of something other than pairs")
    pairs = [(_plain_key(key), value) for key, value in values[0]] if values else []
    result = OrderedDict([*pairs, *builder.pairs(call.items)])
    for state in map(builder.build, call.states):
        if not isinstance(state, dict) or set(state) != {"_metadata"} or not _is_metadata(state["_metadata"]):
            raise refused("an OrderedDict with attributes other than PyTorch's versions of layers")
        result._metadata = state["_metadata"]  # type: ignore[attr-defined]
    return result


def _plain_key(key: Any) -> Any:
    if not isinstance(key, KEYS):
        raise refused(f"a key that is a {type(key).__name__}")
    return key


def _is_metadata(value: Any) -> bool:
    """Whether a value is what :meth:`torch.nn.Module.state_dict` says about layers: the version of each."""
    return isinstance(value, dict) and all(
        isinstance(name, str)
        and isinstance(versions, dict)
        and all(isinstance(key, str) and isinstance(value, int | type(None)) for key, value in versions.items())
        for name, versions in value.items()
    )


def _counter(builder: Builder, call: Call) -> Counter:
    counts: dict[Any, Any] = {}
    for value in builder.arguments(call, 0, 1):
        if type(value) is not dict:
            raise refused("collections.Counter of something other than counts")
        counts.update(value)
    counts.update(builder.pairs(call.items))
    if call.states or not all(isinstance(count, int | float) for count in counts.values()):
        raise refused("collections.Counter of something other than counts")
    return Counter(counts)


def _set(builder: Builder, call: Call) -> Any:
    only_call(call)
    frozen = call.function.name.endswith("frozenset")
    if not all(type(argument) is list for argument in call.arguments) or len(call.arguments) > 1:
        raise refused(f"{call.function.name} of something other than a list")
    return builder.build(Set([part for argument in call.arguments for part in argument], frozen))


def _encode(builder: Builder, call: Call) -> bytes:
    """By which pickle's protocol 2 writes bytes."""
    only_call(call)
    text, encoding = builder.arguments(call, 2)
    if type(text) is not str or encoding != "latin1":
        raise refused(f"text in the encoding {encoding!r}")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise refused("text that does not encode bytes") from error


def _bytes(builder: Builder, call: Call) -> bytes | bytearray:
    """Empty bytes in protocol 2, and bytearrays."""
    only_call(call)
    values = builder.arguments(call, 0, 2)
    kind = bytes if call.function.name.endswith("bytes") else bytearray
    if not values:
        return kind()
    if kind is bytearray and type(values[0]) is bytes and len(values) == 1:
        return bytearray(values[0])
    if kind is bytearray and type(values[0]) is str and values[1:] == ["latin-1"]:
        return bytearray(values[0].encode("latin-1", "replace"))
    raise refused(f"{call.function.name} of something other than text")


def _complex(builder: Builder, call: Call) -> complex:
    only_call(call)
    real, imaginary = builder.arguments(call, 2)
    if not isinstance(real, int | float) or not isinstance(imaginary, int | float):
        raise refused("complex of something other than numbers")
    return complex(real, imaginary)


def _history(builder: Builder, call: Call) -> HistoryBuffer:
    """MMEngine's record of a metric: two arrays of numbers.

    Its pickle names functions as its statistics, too. They are left as they are, names: the class has its own.
    """
    builder.arguments(call, 0)
    if call.items or len(call.states) != 1 or type(call.states[0]) is not Dict:
        raise refused("a HistoryBuffer without a state")
    state = dict(builder.pairs([(key, value) for key, value in call.states[0].items if key not in _STATISTICS]))
    if set(state) != {"max_length", "_log_history", "_count_history"}:
        raise refused("a HistoryBuffer of something other than its two histories")
    longest, *histories = state["max_length"], state["_log_history"], state["_count_history"]
    if (
        type(longest) is not int
        or not 0 < longest <= _LONGEST_HISTORY
        or not all(type(history) is np.ndarray and history.ndim == 1 for history in histories)
        or len(histories[0]) != len(histories[1])
    ):
        raise refused("a HistoryBuffer of something other than two arrays of equal length")
    buffer = HistoryBuffer(max_length=longest)
    buffer._log_history, buffer._count_history = histories
    return buffer


def _instances(builder: Builder, call: Call) -> InstanceData:
    """MMEngine's instances, which files of proposals hold: fields of equal length, and facts about the image."""
    builder.arguments(call, 0)
    states = [builder.build(state) for state in call.states]
    if call.items or len(states) != 1 or not isinstance(states[0], dict):
        raise refused("an InstanceData without a state")
    state = states[0]
    known = {}
    for kind in ("_metainfo_fields", "_data_fields"):
        names = state.pop(kind, None)
        if not isinstance(names, set) or not names <= set(state) or not all(map(_is_field, names)):
            raise refused("an InstanceData without its fields")
        known[kind] = {name: state.pop(name) for name in sorted(names)}
    if state:
        raise refused("an InstanceData with attributes that are not fields")
    return InstanceData(metainfo=known["_metainfo_fields"], **known["_data_fields"])


def _is_field(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not hasattr(InstanceData, name)


FACTORIES: dict[str, Factory] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": _complex,
    "_codecs.encode": _encode,
    "mmengine.logging.history_buffer.HistoryBuffer": _history,
    "mmengine.structures.instance_data.InstanceData": _instances,
    **arrays.FACTORIES,
}
