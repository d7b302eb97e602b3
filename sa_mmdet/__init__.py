"""Attention backbones for MMDetection. Importing the package registers them and repairs the libraries that it uses."""

from . import compat

compat.stand_in()
compat.check_stack()
compat.apply(compat.ON_IMPORT)

from . import attention, backbones, checkpoints, engine, insertion, ops  # noqa: E402  (the check above names what these need)
from .backbones import obstacles_to_fusion  # noqa: E402
from .version import __version__  # noqa: E402

compat.apply(engine.REPAIRS)

__all__ = ["__version__", "attention", "backbones", "checkpoints", "engine", "insertion", "obstacles_to_fusion", "ops"]
