"""The steps of `make install`. Each does only what is missing, so that a second run takes seconds."""

from __future__ import annotations

import functools
import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from . import operators, settings, system
from .commands import Commands
from .environment import Environment
from .mmcv import Mmcv
from .native import Native
from .output import Job, explain, fail, say
from .packages import Packages
from .settings import Settings

_STEPS = 5
_READY = "import sa_mmdet, mmdet"  # works in an environment that is ready
# Python compiles modules when they are first imported, here more than 3000: it does so while mmcv's last unit compiles.
_PREPARE = """
import compileall, importlib, importlib.util
for name in ("mim", "mmengine.runner", "torch._dynamo", "matplotlib.pyplot", "scipy.optimize", "pandas"):
    try:
        importlib.import_module(name)
    except Exception:
        pass
mmdet = importlib.util.find_spec("mmdet")
for folder in mmdet.submodule_search_locations if mmdet else ():
    compileall.compile_dir(folder, quiet=2, workers=1)
"""
_STAND_INS = "sa_mmdet.compat.mmcv_operators"  # makes mmcv use torchvision's operators


class Setup:
    """One run of `make install`.

    Args:
        chosen: The Makefile's variables.
    """

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        self.environment = Environment(chosen)
        self.commands = Commands(self.environment, _STEPS)
        self._preparing: Job | None = None

    def run(self) -> None:
        """Do all steps that are needed; exit with a message where one fails."""
        if self.ready():
            return
        self.check_choices()
        self.environment.check_stack()
        self._check_system()
        self.settings.venv.mkdir(parents=True, exist_ok=True)
        self.commands.lock(self.settings.venv / ".sa_mmdet_lock")
        if self.ready():  # another set-up has finished while this one waited for the lock
            return
        resuming = self.settings.unfinished.exists()
        self.settings.unfinished.touch()
        self.settings.log.unlink(missing_ok=True)
        packages = Packages(self.commands, resuming)
        self._make_environment(resuming)
        self._install_torch(packages)
        native = Native(self.commands)
        native.start()
        try:
            Mmcv(self.commands, packages, functools.partial(self._install_this, native)).install()
            self._check()
        finally:
            native.stop()
            if self._preparing is not None:
                self._preparing.stop()
        self.finish()

    def ready(self) -> bool:
        """Whether the environment was set up from the present files and choices, and works."""
        stamp = self.settings.stamp
        return stamp.exists() and stamp.read_text() == self.state() and self.environment.problem(_READY) is None

    def state(self) -> str:
        """A digest of everything that an installation depends on."""
        chosen = self.settings
        digest = hashlib.sha256(f"{chosen.stack} {chosen.torch} {chosen.operators}".encode())
        files = [settings.CONSTRAINTS, settings.REQUIREMENTS, settings.REPOSITORY / "setup.py"]
        native = settings.REPOSITORY / "sa_mmdet" / "ops" / "native"
        files += sorted([*native.glob("*.cpp"), *native.glob("*.h")])
        for path in (*files, *sorted(Path(__file__).parent.glob("*.py"))):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def check_choices(self) -> None:
        """Exit with a message where a variable of the Makefile has an unknown value."""
        for name, value, choices in (
            ("STACK", self.settings.stack, tuple(settings.STACKS)),
            ("OPERATORS", self.settings.operators, settings.OPERATORS),
        ):
            if value not in choices:
                fail(f"{name}={value} is unknown: choose one of {', '.join(filter(None, choices))}")

    def _check_system(self) -> None:
        making = not self.environment.exists()
        include = None if making else self.environment.path("include")
        compiling = self.settings.operators != "torchvision" and (
            making or operators.problem(self.environment) is not None
        )
        system.check(self.settings, making, compiling, include)

    def _make_environment(self, resuming: bool) -> None:
        version = ".".join(map(str, sys.version_info[:3]))
        with self.commands.progress.step(f"virtual environment {self.settings.venv} (Python {version})", 10):
            if resuming and self.environment.exists() and self.environment.problem("import sys") is None:
                self.environment.repair()
            self.environment.make()
            self.settings.unfinished.touch()
            self.commands.pip("install", settings.SETUPTOOLS, "wheel", "ninja", "packaging")

    def _install_torch(self, packages: Packages) -> None:
        requested = self.settings.torch
        installed = "torch" in self.environment.installed("torch") and self.environment.problem("import torch") is None
        requirement = requested or settings.DEFAULT_TORCH
        shown = "as it is" if installed and not requested else requirement
        with self.commands.progress.step(f"PyTorch ({shown})", 30):
            if requested or not installed:
                self.commands.pip("install", requirement, *self.settings.torch_args)
            if packages.torch_is_old():
                self.commands.pip("install", settings.OLD_SETUPTOOLS, settings.WITH_OLD_TORCH["numpy"])

    def _install_this(self, native: Native) -> None:
        with self.commands.progress.step("sa_mmdet, editable, with its operators for CPUs", 30):
            native.finish()
            self.commands.pip("install", "--no-build-isolation", "--no-deps", "-e", str(settings.REPOSITORY))
            # openmim looks for sa_mmdet/.mim beside the package's metadata, where an editable install has no package.
            link = self.environment.path("purelib") / "sa_mmdet"
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                link.symlink_to(settings.REPOSITORY / "sa_mmdet")
        self._preparing = self.commands.start(str(self.environment.python), "-c", _PREPARE)

    def _check(self) -> None:
        if self.settings.operators == "torchvision":
            self.commands.watch(self.commands.start(str(self.environment.python), "-m", _STAND_INS, "install"))
        problem = self.environment.problem("import mim, sa_mmdet")
        if problem is not None:
            fail(f"installed, but cannot be imported: {explain(problem)}")

    def finish(self) -> None:
        """Mark the environment as ready, and say what it contains."""
        new = self.settings.stamp.with_suffix(".new")
        new.write_text(self.state())
        new.replace(self.settings.stamp)
        self.settings.unfinished.unlink()
        say(f"ready in {self.commands.progress.summary()}")
        say(f"{self._versions()}: {self.environment.python}")
        say("next: make demo (trains a detector), make test, or the README's first config")

    def _versions(self) -> str:
        # mmcv without operators calls itself mmcv-lite.
        names = ("torch", self.settings.packages["mmcv"], "mmcv-lite", self.settings.packages["mmdet"])
        found = self.environment.versions(*names)
        return ", ".join(f"{name} {found[name]}" for name in names if name in found)


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(f"make install: stopped by signal {number}; run it again to continue")


def main() -> None:
    """Run the set-up with the choices in the environment variables."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        Setup(settings.read()).run()
    except KeyboardInterrupt:
        sys.exit("\nmake install: interrupted; run it again to continue")
    except subprocess.CalledProcessError as error:
        fail(f"{error.cmd} failed with {error.returncode}: {explain(str(error.output or ''))}")
