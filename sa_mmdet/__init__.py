"""Attention backbones for MMDetection. Importing the package registers them and repairs the stack below."""

from . import compat

compat.stand_in()
compat.check_stack()
compat.apply()

from . import attention, backbones, engine, ops  # noqa: E402  (the checks above explain what these imports would die of)
from .version import __version__  # noqa: E402

__all__ = ["__version__", "attention", "backbones", "engine", "ops"]
