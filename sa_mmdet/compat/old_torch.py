"""All that only PyTorch before 2.6 needs. Once it is not supported any more, delete this module and what calls it.

PyTorch's own strict loader can be told of further names from 2.6 on only. Before, MMEngine's checkpoints need a strict
unpickler of their own: the standard library's, written in Python, narrowed opcode by opcode. One that narrowed the
names alone would still call whatever they stand for, and set its attributes.
"""

import pickle
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint
from mmengine.utils import digit_version
from torch import Tensor, _weights_only_unpickler

# Whether torch.load runs what a file holds unless it is told otherwise.
LOADS_ANYTHING = digit_version(torch.__version__) < digit_version("2.6.0")
# Whether SyncBatchNorm refuses CPUs even in a single process.
SYNC_BATCH_NORM_NEEDS_GPU = digit_version(torch.__version__) < digit_version("2.0.0")
# The names that checkpoints may use, and what each stands for, beside those of PyTorch's own strict loader.
ADMITTED: dict[str, Any] = {}


def shapes_only() -> AbstractContextManager:
    """A context in which new parameters have a shape and take no memory; before PyTorch 2.0 they do take memory."""
    return torch.device("meta") if hasattr(torch.device, "__enter__") else nullcontext()


def stored_numbers(tensor: Tensor) -> int:
    """The number of elements in a tensor's storage; PyTorch before 2.0 has no ``untyped_storage``."""
    return getattr(tensor, "untyped_storage", tensor.storage)().nbytes() // tensor.element_size()


def admit(names: dict[str, Any]) -> None:
    """Let checkpoints use names, and have torch.load unpickle strictly by :class:`Unpickler`.

    Args:
        names: Each full name, and what it stands for.
    """
    ADMITTED.update(names)
    torch.serialization._weights_only_unpickler = sys.modules[__name__]  # which has load and Unpickler


def refuse_programs(file: Any) -> None:
    """Refuse an archive of TorchScript, which torch.load starts even when it loads strictly.

    Args:
        file: A path, or an open file, which is read from its beginning again.

    Raises:
        pickle.UnpicklingError: The file is such an archive.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise pickle.UnpicklingError("Weights only load failed. The file is a TorchScript program")
    if hasattr(file, "seek"):
        file.seek(0)


def load_strictly_in_mmengine(load_tensors: Callable[..., Any]) -> None:
    """Have MMEngine's module of checkpoints use a strict loader, from files and from addresses.

    Args:
        load_tensors: Takes what torch.load takes.
    """

    class StrictTorch(ModuleType):
        """PyTorch, as MMEngine's module of checkpoints sees it."""

        load = staticmethod(load_tensors)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def load_url(
        url: str, model_dir: str | None = None, map_location: Any = None, progress: bool = True, **options: Any
    ) -> Any:
        """As torch.hub.load_state_dict_from_url, which cannot be told how to unpickle."""
        folder = Path(model_dir or Path(torch.hub.get_dir()) / "checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / Path(urlparse(url).path).name
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path), progress=progress)
        return load_tensors(path, map_location)

    checkpoint.torch = StrictTorch("torch")
    checkpoint.load_url = load_url


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands in for codecs.encode, by which pickle's protocol 2 writes bytes."""
    if type(text) is str and encoding == "latin1":
        return text.encode(encoding)
    raise pickle.UnpicklingError(f"a checkpoint asks for text in the encoding {encoding!r}; only latin1 is admitted")


# What later versions of PyTorch's own strict loader admit, and checkpoints hold.
_AS_LATER: dict[str, Any] = {
    "_codecs.encode": _encode,
    "builtins.set": set,
    "collections.Counter": Counter,  # a scheduler's milestones
    "torch.device": torch.device,
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}


def _all_admitted() -> dict[str, Any]:
    users = getattr(_weights_only_unpickler, "_get_user_allowed_globals", dict)  # since 2.4
    return {**_weights_only_unpickler._get_allowed_globals(), **_AS_LATER, **users(), **ADMITTED}


def _admitted_types() -> tuple[type, ...]:
    return (torch.nn.Parameter, OrderedDict, *(value for value in ADMITTED.values() if isinstance(value, type)))


_Unpickler: Any = vars(pickle)["_Unpickler"]  # the one written in Python, which type stubs do not know


class Unpickler(_Unpickler):
    """The standard library's unpickler, narrowed to tensors, plain containers and :data:`ADMITTED`."""

    dispatch = {**_Unpickler.dispatch}

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._admitted = _all_admitted()

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which torch.save writes, uses the names of Python 2.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._admitted:
            raise pickle.UnpicklingError(f"Weights only load failed. Unsupported global: GLOBAL {full} is not admitted")
        return self._admitted[full]

    def _check(self, what: Any, admitted: Any, use: str) -> None:
        # By identity: a file's values may define how they compare, and need not be hashable.
        if not any(what is one for one in admitted):
            raise pickle.UnpicklingError(f"Weights only load failed. Unsupported global: GLOBAL {what!r} to be {use}")

    def load_reduce(self) -> None:
        self._check(self.stack[-2], self._admitted.values(), "called")
        super().load_reduce()

    def load_newobj(self) -> None:
        self._check(self.stack[-2], _admitted_types(), "instantiated")
        super().load_newobj()

    def load_build(self) -> None:
        self._check(type(self.stack[-2]), (torch.Tensor, *_admitted_types()), "given a state")
        super().load_build()

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("Weights only load failed. It makes objects in a way that no checkpoint does")

    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    codes = pickle.INST + pickle.OBJ + pickle.NEWOBJ_EX + pickle.EXT1 + pickle.EXT2 + pickle.EXT4
    dispatch.update(dict.fromkeys(codes, _refuse))


def load(file: Any, **options: Any) -> Any:
    """As :func:`pickle.load`, by :class:`Unpickler`."""
    return Unpickler(file, **options).load()
