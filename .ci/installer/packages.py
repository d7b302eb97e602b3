"""MMDetection, this package's requirements and the development tools, at versions that work together."""

from __future__ import annotations

from pathlib import Path

from . import causes, settings
from .commands import Commands
from .output import explain, fail, say

# What mmcv needs in addition to the requirements of MMEngine and MMDetection; its wheel is installed without its own.
_REQUIRED_BY_MMCV = ("addict", "packaging", "Pillow", "pyyaml", "yapf")


class Packages:
    """Installs everything except PyTorch, mmcv and this package itself.

    Args:
        commands: Runs pip.
        resuming: Whether an earlier set-up of this environment was interrupted: then packages that can be imported may
            be incomplete, and pip checks all of them.
    """

    def __init__(self, commands: Commands, resuming: bool = False) -> None:
        self._commands, self._environment, self._resuming = commands, commands.environment, resuming

    def torch_is_old(self) -> bool:
        """Whether the installed PyTorch needs numpy 1 and an old setuptools."""
        return self._environment.torch_version() < settings.OLD_TORCH

    def constraints(self) -> Path:
        """Write the versions that work together, as a file for pip's option -c.

        The installed PyTorch and Triton are pinned, so that no package replaces them.
        """
        lines = settings.CONSTRAINTS.read_text().splitlines()
        if self.torch_is_old():
            lines = [settings.WITH_OLD_TORCH.get(line.split("==")[0], line) for line in lines]
        present = self._environment.versions("torch", "triton")
        lines = [line for line in lines if line.split("==")[0] not in present]
        path = self._environment.settings.venv / "constraints.txt"
        path.write_text("\n".join([*lines, *(f"{name}=={version}" for name, version in present.items()), ""]))
        return path

    def install(self) -> None:
        """Install what the requirements name and is not there yet."""
        had_opencv = self._environment.problem("import importlib.util as u; assert u.find_spec('cv2')") is None
        lines = settings.REQUIREMENTS.read_text().splitlines()
        names = [line for line in lines if line and not line.startswith("#")]
        kept = self._kept("mmengine", "mmdet", "triton")
        stack = self._environment.settings.packages
        names = [stack.get(name, name) for name in names if name.split(";")[0] not in kept]
        if self._environment.settings.operators == "torchvision":
            names.append("torchvision")
        constraints = str(self.constraints())
        self._commands.pip("install", "-c", constraints, *names, *_REQUIRED_BY_MMCV)
        if self._environment.problem("import cv2") is not None:
            self.replace_opencv(had_opencv)
        if self._environment.problem("import mim"):
            self._commands.pip("install", "-c", constraints, stack["mim"])
        # openmim downgrades setuptools to a version that cannot build the Python packages of today.
        self._commands.pip("install", settings.OLD_SETUPTOOLS if self.torch_is_old() else settings.SETUPTOOLS)

    def _kept(self, *names: str) -> set[str]:
        """The packages that are already there: a user may have MMDetection from elsewhere; PyTorch brings Triton."""
        if self._resuming:
            return self._environment.installed(*names)
        code = f"import importlib.util as u; print(*(name for name in {names!r} if u.find_spec(name)))"
        return set(self._environment.output(code).split())

    def replace_opencv(self, had: bool) -> None:
        """Install OpenCV without windows where the system lacks their libraries, such as libGL and libxcb.

        Args:
            had: Whether OpenCV was there before this set-up: then it is the user's, and stays.
        """
        problem = self._environment.problem("import cv2") or ""
        cause = causes.find(problem)
        if cause is None or cause.name != "opencv" or had:
            fail(f"OpenCV does not import: {explain(problem)}")
        say(f"installing OpenCV without windows, because of: {problem.splitlines()[-1].split('ImportError: ')[-1]}")
        pip, constraints = self._commands.pip, str(self.constraints())
        pip("uninstall", "-y", "opencv-python")
        pip("install", "--force-reinstall", "--no-deps", "-c", constraints, "opencv-python-headless")
