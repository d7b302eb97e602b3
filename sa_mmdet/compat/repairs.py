"""The repairs of other packages: what each is for, when it is applied, and which are active."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import distributed, mmengine_checkpoints, old_torch, quiet


@dataclass(frozen=True)
class Repair:
    """A change to another package while this one is imported."""

    name: str
    reason: str  # what fails without it
    versions: str  # which versions need it
    apply: Callable[[], None]
    needed: Callable[[], bool] = lambda: True


_active: list[Repair] = []


def apply(repairs: Iterable[Repair]) -> None:
    """Apply the repairs that this machine needs and that are not active yet.

    Args:
        repairs: Such as :data:`ON_IMPORT`.
    """
    for repair in repairs:
        if repair not in _active and repair.needed():
            repair.apply()
            _active.append(repair)


def active() -> list[Repair]:
    """The repairs that have been applied in this process, in that order."""
    return list(_active)


_SYNC_BATCH_NORM = Repair(
    "SyncBatchNorm on CPUs",
    "PyTorch's SyncBatchNorm refuses tensors on CPUs",
    "every PyTorch; before 2.0 in a single process, too",
    distributed.synchronise_batch_norm_on_cpus,
)
# For several processes on CPUs; applied once a launcher starts them on a machine without a GPU.
ON_CPU_LAUNCH = (
    Repair(
        "DistributedDataParallel on CPUs",
        "MMEngine names a GPU to DistributedDataParallel",
        "every MMEngine so far",
        distributed.wrap_models_on_cpus,
    ),
    _SYNC_BATCH_NORM,
)
# What reading checkpoints needs, and the hook that waits for a launcher; applied when the package is imported.
ON_IMPORT = (
    Repair(
        "MMEngine's checkpoints load",
        "torch.load refuses the training history that MMEngine saves, so that test.py and --resume fail",
        "MMEngine up to 0.10.7 with PyTorch from 2.6 on; with older PyTorch for the repair below",
        mmengine_checkpoints.admit_training_history,
    ),
    Repair(
        "checkpoints are never run",
        "MMEngine unpickles whatever an address, and before PyTorch 2.6 a file, holds",
        "every MMEngine so far",
        mmengine_checkpoints.load_strictly,
    ),
    Repair(
        "torchvision:// without torchvision",
        "MMEngine imports torchvision to look up the addresses of its weights",
        "every MMEngine so far, where torchvision is not installed",
        mmengine_checkpoints.resolve_torchvision_names,
        mmengine_checkpoints.torchvision_is_missing,
    ),
    Repair(
        "launchers without a GPU",
        "MMEngine binds each process to a GPU, and NCCL needs one",
        "every MMEngine so far; does nothing where there is a GPU",
        lambda: distributed.launch_on_cpus(lambda: apply(ON_CPU_LAUNCH)),
    ),
    Repair(
        "pkg_resources' warning",
        "MMEngine imports pkg_resources again for each config, which warns of its deprecation every time",
        "MMEngine up to 0.10.7",
        quiet.ignore_pkg_resources,
    ),
    *([_SYNC_BATCH_NORM] if old_torch.SYNC_BATCH_NORM_NEEDS_GPU else []),
)
