"""The error of operators without a stand-in."""

from importlib.metadata import packages_distributions
from typing import Any, NoReturn

from mmcv import __version__


def refuse(what: str, *arguments: Any, **options: Any) -> NoReturn:
    """Raise an error that names the operator, and how to install mmcv with its operators.

    Args:
        what: The operator, for the message "mmcv is installed without compiled operators, and ... has no stand-in".
        arguments: Ignored.
        options: Ignored.

    Raises:
        NotImplementedError: Always.
    """
    installed = sorted(set(packages_distributions().get("mmcv", ["mmcv"])))
    name = installed[0].removesuffix("-lite")  # the maintained fork's is onedl-mmcv
    raise NotImplementedError(
        f"mmcv is installed without compiled operators, and {what} has no stand-in. Install mmcv with its operators, "
        "which takes a C++ compiler, and for a GPU the CUDA toolkit of PyTorch's CUDA version: pip uninstall -y "
        f"{' '.join(installed)}; pip install --no-build-isolation --no-cache-dir {name}=={__version__}"
    )
