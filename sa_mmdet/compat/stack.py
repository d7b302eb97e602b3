"""The check of what is installed, before any of it is used."""

import importlib
import importlib.util

import torch
from mmengine.utils import digit_version


def check_stack() -> None:
    """Refuse an installation that cannot work, in one sentence.

    Decides by major versions and by what imports: the maintained fork (onedl-*) keeps the import names and has higher
    versions.

    Raises:
        ImportError: MMCV or MMDetection is missing or too old, or MMCV lacks its operators.
    """
    for name, minimum in (("mmcv", 2), ("mmdet", 3)):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"sa_mmdet needs {name} >= {minimum}.0, which is not installed: pip install {name}")
        try:
            module = importlib.import_module(name)
        except AssertionError as error:  # mmdet's own check of mmcv's and mmengine's versions
            raise ImportError(f"{name} does not import: {error}") from error
        if digit_version(module.__version__)[0] < minimum:
            raise ImportError(
                f"sa_mmdet needs {name} >= {minimum}.0, found {module.__version__}: pip install '{name}>={minimum}.0'"
            )
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        raise ImportError(
            f"mmcv is installed without operators that fit PyTorch {torch.__version__} ({error}). Build them against "
            "it: pip uninstall -y mmcv mmcv-lite; pip install --no-build-isolation --no-cache-dir mmcv==2.1.0"
        ) from error
