"""The packages below this one: the check that they can work, and repairs of what they do wrong.

Each repair says what fails without it and which versions need it. Importing the package applies those that reading
checkpoints needs; those for several processes on CPUs wait until a launcher starts on a machine without a GPU.
"""

from .askers import replace_in_openmmlab
from .mmcv_operators import stand_in
from .repairs import ON_IMPORT, Repair, active, apply
from .stack import check_stack
from .strict_reading import load_tensors

__all__ = ["ON_IMPORT", "Repair", "active", "apply", "check_stack", "load_tensors", "replace_in_openmmlab", "stand_in"]
