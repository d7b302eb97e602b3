"""Compiling this package's own operators for CPUs, beside the other steps of the set-up."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import settings
from .commands import Commands
from .output import Failed, Job, say

FOLDER = Path("sa_mmdet", "ops", "native")
_BUILD = f"""
import pathlib, runpy, sys
names = runpy.run_path({str(FOLDER / "__init__.py")!r})
if not names["is_built"](pathlib.Path({str(FOLDER)!r}).resolve()):
    sys.argv[0] = "setup.py"
    runpy.run_path("setup.py", run_name="__main__")
"""


class Native:
    """Compiles the operators in the background, with one process: mmcv's operators compile at the same time.

    Where this fails, pip tries again when it installs the package, which also works without the operators.

    Args:
        commands: Shows progress.
    """

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._job: Job | None = None
        self._built = commands.environment.settings.venv / "operators"

    def start(self) -> None:
        """Start to compile; what an earlier, interrupted set-up left is deleted first."""
        shutil.rmtree(self._built, ignore_errors=True)
        self._built.mkdir()
        folders = ("--build-temp", str(self._built / "objects"), "--build-lib", str(self._built / "library"))
        self._job = Job(
            (str(self._commands.environment.python), "-c", _BUILD, "build_ext", *folders),
            self._commands.environment.settings.log.with_name("install_operators.log"),
            settings.REPOSITORY,
            {**os.environ, "MAX_JOBS": "1"},
            self._commands.descriptors,
        )

    def finish(self) -> None:
        """Wait until they are compiled, and move them into the package, complete or not at all."""
        if self._job is None:
            return
        try:
            self._commands.progress.watch(self._job)
            for library in (self._built / "library" / FOLDER).glob("*.so"):
                target = settings.REPOSITORY / FOLDER / library.name
                temporary = target.with_name(f"{library.name}.{os.getpid()}")
                shutil.copy2(library, temporary)  # the environment may be on another disk
                temporary.replace(target)
        except Failed as failure:
            say(f"{failure.command} failed; pip tries again")
        shutil.rmtree(self._built, ignore_errors=True)

    def stop(self) -> None:
        """End the compilation, if it still runs."""
        if self._job is not None:
            self._job.stop()
