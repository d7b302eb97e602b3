"""The C++ sources of the operators for CPUs, and the name of the library that they are compiled into."""

import re
import sysconfig
from pathlib import Path

import torch

SOURCES = ("kernels.cpp", "autograd.cpp")


def library_name() -> str:
    """The name of the library for this PyTorch: one that was compiled for another may crash, so it is never loaded."""
    return "_torch_" + re.sub(r"\W", "_", torch.__version__)


def is_built(folder: Path) -> bool:
    """Whether the library for this PyTorch and Python is in this folder, and newer than its sources."""
    library = folder / f"{library_name()}{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [*folder.glob("*.cpp"), *folder.glob("*.h"), folder.parents[2] / "setup.py"]
    return library.is_file() and library.stat().st_mtime > max(path.stat().st_mtime for path in sources)
