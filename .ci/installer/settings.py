"""The user's choices, the paths of an environment, and the versions that this repository requires."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CONSTRAINTS = REPOSITORY / ".ci" / "constraints.txt"
REQUIREMENTS = REPOSITORY / "requirements.txt"

DEFAULT_TORCH = "torch==2.13.0"
# The OpenMMLab packages as last released by their authors, and the maintained fork, which has the same import names.
STACKS = {
    "upstream": dict(mmcv="mmcv", mmengine="mmengine", mmdet="mmdet", mim="openmim==0.3.9"),
    "onedl": dict(mmcv="onedl-mmcv", mmengine="onedl-mmengine", mmdet="onedl-mmdetection", mim="onedl-mim==0.5.1"),
}
# How mmcv's operators are compiled: in few units, or file by file if that fails; file by file; or not at all, where
# torchvision's operators replace them.
OPERATORS = ("", "plain", "torchvision")
# openmim and mmengine import pkg_resources for each config and command: from 80.9 on it warns each time, 82 has none.
SETUPTOOLS = "setuptools>=77,<80.9"
# PyTorch before 2.3 is compiled against numpy 1, and imports what setuptools dropped in 70.
OLD_TORCH = (2, 3)
OLD_SETUPTOOLS = "setuptools>=69,<70"
WITH_OLD_TORCH = {
    "numpy": "numpy<2",
    "opencv-python": "opencv-python<4.12",
    "opencv-python-headless": "opencv-python-headless<4.12",
    "captum": "captum==0.8.0",
}


@dataclass(frozen=True)
class Settings:
    """The Makefile's variables.

    Attributes:
        venv: The environment's folder.
        stack: The OpenMMLab packages, a key of STACKS.
        torch: The requirement for PyTorch, such as 'torch==2.13.0'; empty for the installed PyTorch or the default.
        torch_args: Further arguments for pip when it installs PyTorch.
        operators: How mmcv's operators are compiled, one of OPERATORS.
        cache: The folder in which compiled wheels are kept for other environments.
    """

    venv: Path
    stack: str
    torch: str
    torch_args: tuple[str, ...]
    operators: str
    cache: Path

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.venv / "install.log"

    @property
    def stamp(self) -> Path:
        """The file that is written last; holds the digest of what the environment was set up from."""
        return self.venv / ".sa_mmdet_installed"

    @property
    def unfinished(self) -> Path:
        """The file that exists while a set-up runs, and after one that was killed."""
        return self.venv / ".sa_mmdet_installing"

    @property
    def packages(self) -> dict[str, str]:
        """The OpenMMLab packages' names on the package index."""
        return STACKS[self.stack]


def read() -> Settings:
    """Read the Makefile's variables from the environment variables."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Settings(
        venv=Path(os.environ.get("VENV") or ".venv").absolute(),
        stack=os.environ.get("STACK") or "upstream",
        torch=os.environ.get("TORCH", ""),
        torch_args=tuple(shlex.split(os.environ.get("TORCH_ARGS", ""))),
        operators=os.environ.get("OPERATORS", ""),
        cache=cache.absolute() / "sa_mmdet",
    )
