"""Processes in which mmcv has no compiled operators, and marks for tests that need some."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
from places import REPOSITORY

from sa_mmdet.compat import mmcv_operators

MMCV = Path(mmcv.__file__).parent
HAS_COMPILED = bool(mmcv_operators.compiled(MMCV))
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)
needs_compiled = pytest.mark.skipif(not HAS_COMPILED, reason="mmcv is installed without compiled operators")


def without_operators(folder: Path) -> Path:
    """Make a folder for PYTHONPATH that contains mmcv without its compiled operators."""
    package = folder / "mmcv"
    package.mkdir(parents=True)
    for path in MMCV.iterdir():
        if not path.name.startswith(("_ext.", "__pycache__")):
            (package / path.name).symlink_to(path)
    return folder


def environment(*folders: Path) -> dict[str, str]:
    """The environment variables of a process that looks for packages in these folders first."""
    given = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, folders), str(REPOSITORY), given])}


def python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process that looks for packages in these folders first; the first one is its working directory."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment(*folders), cwd=folders[0])
