"""The repairs of other packages: what each is for, when it is applied, and which are active."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import distributed, new_python, old_torch, own_folder, quiet, strict_reading, torchvision_names


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
        "checkpoints load, and are never run",
        "MMEngine up to 0.10.7 refuses its own checkpoints with PyTorch from 2.6 on, so that test.py and --resume "
        "fail; all other combinations unpickle whatever a file or an address holds",
        "every MMEngine so far",
        strict_reading.load_strictly,
    ),
    Repair(
        "recorded configs are never run",
        "--resume and DetInferencer(weights=FILE) run the text of a config that a checkpoint records",
        "every MMEngine so far",
        strict_reading.read_recorded_configs_as_literals,
    ),
    Repair(
        "annotations and results are never run",
        "data sets unpickle whatever an annotation file in .pkl holds, and run what one in YAML says",
        "every MMEngine so far",
        strict_reading.read_data_files_strictly,
    ),
    Repair(
        "what gets past the repairs above is refused",
        "a version to come may open files in another way",
        "none so far",
        strict_reading.refuse_what_gets_past,
    ),
    Repair(
        "checkpoints remove nothing elsewhere",
        "a resumed checkpoint names a path that is removed at the next best score, with everything in it",
        "every MMEngine so far",
        own_folder.remove_nothing_elsewhere,
    ),
    Repair(
        "torchvision:// without torchvision",
        "MMEngine imports torchvision to look up the addresses of its weights",
        "every MMEngine so far, where torchvision is not installed",
        torchvision_names.resolve_torchvision_names,
        torchvision_names.torchvision_is_missing,
    ),
    Repair(
        "pkgutil.find_loader",
        "Python 3.14 removed it; MMEngine's runners and mmcv look for mmcv's operators with it",
        "every MMEngine and mmcv so far, with Python 3.14",
        new_python.restore_find_loader,
        new_python.find_loader_is_missing,
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
