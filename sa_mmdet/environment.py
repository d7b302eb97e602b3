"""A description of the installation for bug reports: versions, and this package's changes to other libraries."""

import importlib.metadata
from collections.abc import Iterable

from mmengine.utils.dl_utils import collect_env

from .compat import Repair, repairs
from .ops import backends
from .version import __version__

_LEFT_OUT = ("numpy_random_seed", "PyTorch compiling details")  # drawn at random by this process; too long
_LIBRARIES = ("mmcv", "mmdet", "mmpretrain", "numpy", "cv2", "pycocotools", "triton", "safetensors", "captum", "onnx")


def describe() -> str:
    """Describe the installation as text: versions, kernels, and repairs of other libraries, one section each."""
    sections = {
        f"sa_mmdet {__version__}": _lines(
            (name, value) for name, value in collect_env().items() if name not in _LEFT_OUT
        ),
        "Libraries": _lines(_versions()),
        "Fused shuffle attention (for a model: sa_mmdet.obstacles_to_fusion(model))": _lines(
            backends.describe().items()
        ),
        "Active repairs of other libraries": _repairs(repairs.active()),
        "Repairs that become active in distributed training without a GPU": _repairs(
            repair for repair in repairs.ON_CPU_LAUNCH if repair not in repairs.active()
        ),
    }
    return "\n\n".join(f"{title}\n{text or '  none'}" for title, text in sections.items())


def _versions() -> Iterable[tuple[str, str]]:
    """Each library's version, with the name of the package that provides it."""
    providers = importlib.metadata.packages_distributions()
    for library in _LIBRARIES:
        packages = dict.fromkeys(providers.get(library, []))
        found = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
        yield library, found or "not installed"


def _lines(pairs: Iterable[tuple[str, object]]) -> str:
    return "\n".join(f"  {name}: {str(value).strip()}" for name, value in pairs)


def _repairs(found: Iterable[Repair]) -> str:
    return "\n".join(f"  {repair.name}: {repair.reason} ({repair.versions})" for repair in found)
