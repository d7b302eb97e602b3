"""What MMEngine and mmcv take from Python that a newer Python has no longer."""

import importlib.util
import pkgutil
from typing import Any


def find_loader_is_missing() -> bool:
    """Whether Python has no ``pkgutil.find_loader``, which 3.14 removed."""
    return not hasattr(pkgutil, "find_loader")


def restore_find_loader() -> None:
    """Give ``pkgutil`` its former function, by which MMEngine and mmcv ask whether mmcv has operators."""
    pkgutil.find_loader = _find_loader  # type: ignore[attr-defined,assignment,unused-ignore]


def _find_loader(name: str) -> Any:
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.loader
