"""Unpickles tensors and plain containers alone: stands in for torch._weights_only_unpickler before PyTorch 2.6.

From 2.6 on PyTorch's own can be told of further names, which MMEngine's checkpoints need; before, it cannot. This is
the standard library's unpickler in Python, narrowed opcode by opcode: one that narrows the names alone would still
call, and set attributes of, whatever they stand for.
"""

import pickle
from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import _weights_only_unpickler

_ADMITTED: dict[str, Any] = {}


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands in for codecs.encode, by which protocol 2 writes bytes."""
    if type(text) is str and encoding == "latin1":
        return text.encode(encoding)
    raise pickle.UnpicklingError(f"a checkpoint asks for text in the encoding {encoding!r}; admitted is latin1")


def admit(names: dict[str, Any]) -> None:
    """Admit names and what they stand for, beside those of PyTorch's own strict loader."""
    _ADMITTED.update(names)


# What PyTorch's own admits from some later version on, and checkpoints hold.
_AS_LATER: dict[str, Any] = {
    "_codecs.encode": _encode,
    "builtins.set": set,
    "collections.Counter": Counter,  # a scheduler's milestones
    "torch.device": torch.device,
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}


def _admitted() -> dict[str, Any]:
    users = getattr(_weights_only_unpickler, "_get_user_allowed_globals", dict)  # came with 2.4
    return {**_weights_only_unpickler._get_allowed_globals(), **_AS_LATER, **users(), **_ADMITTED}


def _kinds() -> tuple[type, ...]:
    return (torch.nn.Parameter, OrderedDict, *(one for one in _ADMITTED.values() if isinstance(one, type)))


def _is_one_of(value: Any, admitted: Any) -> bool:
    # By identity: a file's values may compare as they like, and need not be hashable.
    return any(value is one for one in admitted)


_Unpickler: Any = vars(pickle)["_Unpickler"]  # the one in Python, which type stubs do not know


class Unpickler(_Unpickler):
    """The standard library's, narrowed to what is admitted."""

    dispatch = {**_Unpickler.dispatch}

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._admitted = _admitted()

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which torch.save writes, has the names of Python 2.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._admitted:
            raise pickle.UnpicklingError(f"Weights only load failed. Unsupported global: GLOBAL {full} is not admitted")
        return self._admitted[full]

    def _check(self, what: Any, admitted: Any, deed: str) -> None:
        if not _is_one_of(what, admitted):
            raise pickle.UnpicklingError(f"Weights only load failed. Unsupported global: GLOBAL {what!r} to be {deed}")

    def load_reduce(self) -> None:
        self._check(self.stack[-2], self._admitted.values(), "called")
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check(self.stack[-2], _kinds(), "made an object of")
        super().load_newobj()

    def load_build(self) -> None:
        self._check(type(self.stack[-2]), (torch.Tensor, *_kinds()), "given a state")
        super().load_build()

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("Weights only load failed. It makes objects in a way that no checkpoint does")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    codes = pickle.INST + pickle.OBJ + pickle.NEWOBJ_EX + pickle.EXT1 + pickle.EXT2 + pickle.EXT4
    dispatch.update(dict.fromkeys(codes, _refuse))


def load(file: Any, **options: Any) -> Any:
    """As :func:`pickle.load`."""
    return Unpickler(file, **options).load()
