"""Who asks for a file: a package of OpenMMLab, which reads strictly here, or the user, whose calls are as they were."""

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from mmengine.config.utils import MODULE2PACKAGE

OPENMMLAB = frozenset({"mmengine", "mmcv", "mmdet", "sa_mmdet", *MODULE2PACKAGE})
# What passes a request on: the functions that open files, and this package's own wrappers.
_OPENERS = ("torch.serialization", "torch.hub", "torch.utils.model_zoo", "mmengine.fileio", "numpy.lib", "numpy")
_THROUGH = (*_OPENERS, __name__, "functools", "contextlib", "pickle")


def _is_of(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def asking_module(frame: FrameType | None = None) -> str:
    """The name of the module whose code asks for a file.

    Args:
        frame: Where to begin; the caller's caller if None.
    """
    frame = sys._getframe(2) if frame is None else frame
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not _is_of(name, _THROUGH):
            return name
        frame = frame.f_back
    return ""


def is_openmmlab(module: str) -> bool:
    """Whether a module belongs to a package of OpenMMLab, or to this one."""
    return module.partition(".")[0] in OPENMMLAB


def strict_for_openmmlab(original: Callable[..., Any], strict: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is ``strict`` for OpenMMLab's packages and ``original`` for everybody else."""

    @functools.wraps(original)
    def dispatched(*arguments: Any, **options: Any) -> Any:
        asked = strict if is_openmmlab(asking_module()) else original
        return asked(*arguments, **options)

    return dispatched


def replace_in_openmmlab(original: Any, replacement: Any) -> None:
    """Replace a function wherever a module of OpenMMLab has it under a name of its own."""
    for name, module in list(sys.modules.items()):
        if module is not None and is_openmmlab(name) and not _is_of(name, ("sa_mmdet",)):
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, replacement)


def opens_file_for_openmmlab() -> bool:
    """Whether the code that runs now was started by a function that opens files, which OpenMMLab's code called."""
    frame: FrameType | None = sys._getframe(2)
    opened = False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if not _is_of(name, _THROUGH):
            return opened and is_openmmlab(name)
        opened = opened or _is_of(name, _OPENERS)
        frame = frame.f_back
    return False
