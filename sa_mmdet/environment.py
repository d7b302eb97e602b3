"""What a bug report needs: versions, and what this package has changed in others."""

import importlib.metadata
from collections.abc import Iterable

from mmengine.utils.dl_utils import collect_env

from .compat import Repair, repairs
from .ops import backends
from .version import __version__

_UNHELPFUL = ("numpy_random_seed", "PyTorch compiling details")  # long, or about a number that was drawn just now
_LIBRARIES = ("mmcv", "mmdet", "mmpretrain", "numpy", "cv2", "pycocotools", "triton", "safetensors", "captum", "onnx")


def describe() -> str:
    """Describe the installation as text, one section per question that a bug report raises."""
    sections = {
        f"sa_mmdet {__version__}": _lines(
            (name, value) for name, value in collect_env().items() if name not in _UNHELPFUL
        ),
        "Libraries": _lines(_versions()),
        "Shuffle attention with the end of a block (sa_mmdet.obstacles_to_fusion(model) tells of a model)": _lines(
            backends.describe().items()
        ),
        "Repairs of other libraries that are active": _repairs(repairs.active()),
        "Repairs that wait for a launcher without a GPU": _repairs(
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
