"""Repairs of the stack below: each with its reason and the versions it is for. Importing the package applies them."""

from . import checkpoints, distributed
from .mmcv_operators import stand_in
from .stack import check_stack

__all__ = ["apply", "check_stack", "stand_in"]


def apply() -> None:
    """Apply all repairs."""
    checkpoints.admit_mmengine_checkpoints()
    checkpoints.refuse_code()
    checkpoints.resolve_torchvision_names()
    checkpoints.load_safetensors()
    distributed.launch_on_cpus()
    distributed.synchronise_batch_norm_on_cpus()
