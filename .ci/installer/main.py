"""The steps of the set-up. Does what is missing and nothing else; a second run takes seconds."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import causes, operators, settings, system
from .environment import Environment, Lock
from .output import Failed, Job, Progress, explain, fail, say
from .settings import Settings

TOOLS_SECONDS = 60
READY = "import sa_mmdet, mmdet"
STAND_INS = "sa_mmdet.compat.mmcv_operators"  # lets torchvision's operators stand in for mmcv's
# What mmcv needs beside what MMEngine and MMDetection bring; its wheel is installed without its requirements.
MMCV_NEEDS = ("addict", "packaging", "Pillow", "pyyaml", "yapf")


class Setup:
    """One run of `make install`."""

    def __init__(self, chosen: Settings) -> None:
        self.settings = chosen
        self.environment = Environment(chosen)
        self.progress = Progress(5, chosen.log)
        self._resuming = False
        self._lock: Lock | None = None

    # Running commands

    def _keep_open(self) -> tuple[int, ...]:
        return (self._lock.descriptor,) if self._lock else ()

    def job(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Job:
        return Job(arguments, self.settings.log, settings.REPOSITORY, environment, self._keep_open())

    def pip(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Run pip in the environment; explain a failure and stop."""
        command = (str(self.environment.python), "-m", "pip", *arguments[:1], "--disable-pip-version-check")
        if arguments[0] == "install":
            command += ("--no-compile",)  # a third of pip's time; Python compiles what is imported, once
        self.watch(self.job(*command, *arguments[1:], environment=environment))

    def watch(self, job: Job) -> None:
        try:
            self.progress.watch(job)
        except Failed as failure:
            self.give_up(failure)

    def give_up(self, failure: Failed) -> NoReturn:
        fail(f"{failure.command} failed, its log is {self.settings.log}\n{explain(failure.output)}")

    # The steps

    def run(self) -> None:
        if self.ready():
            return
        self.check_choices()
        self.environment.check_stack()
        making = not self.environment.exists()
        include = None if making else self.environment.path("include")
        compiling = self.settings.operators != "torchvision" and (
            making or operators.problem(self.environment) is not None
        )
        system.check(self.settings, making, compiling, include)
        self.settings.venv.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.settings.venv / ".sa_mmdet_lock", str(self.settings.venv))
        if self.ready():  # by the one that was waited for
            return
        self._resuming = self.settings.unfinished.exists()
        self.settings.unfinished.touch()
        self.settings.log.unlink(missing_ok=True)
        self.make_environment()
        self.install_torch()
        self.install_packages_and_operators()
        self.install_this()
        self.finish()

    def ready(self) -> bool:
        stamp = self.settings.stamp
        return stamp.exists() and stamp.read_text() == self.state() and self.environment.problem(READY) is None

    def state(self) -> str:
        """What an installation depends on."""
        chosen = self.settings
        digest = hashlib.sha256(f"{chosen.stack} {chosen.torch} {chosen.operators}".encode())
        files = [settings.CONSTRAINTS, settings.REQUIREMENTS, settings.REPOSITORY / "setup.py"]
        for path in (*files, *sorted(Path(__file__).parent.glob("*.py"))):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def check_choices(self) -> None:
        for name, value, choices in (
            ("STACK", self.settings.stack, tuple(settings.STACKS)),
            ("OPERATORS", self.settings.operators, settings.OPERATORS),
        ):
            if value not in choices:
                fail(f"{name}={value} is unknown: give one of {', '.join(filter(None, choices))}")

    def make_environment(self) -> None:
        version = ".".join(map(str, sys.version_info[:3]))
        with self.progress.step(f"virtual environment {self.settings.venv} (Python {version})", 10):
            if self._resuming and self.environment.exists() and self.environment.problem("import sys") is None:
                self.environment.mend()
            self.environment.make()
            self.settings.unfinished.touch()
            self.pip("install", settings.SETUPTOOLS, "wheel", "ninja", "packaging")

    def install_torch(self) -> None:
        wanted = self.settings.torch
        installed = "torch" in self.environment.installed("torch") and self.environment.problem("import torch") is None
        requirement = wanted or settings.DEFAULT_TORCH
        with self.progress.step(f"PyTorch ({'as it is' if installed and not wanted else requirement})", 30):
            if wanted or not installed:
                self.pip("install", requirement, *self.settings.torch_args)
            if self.torch_is_old():
                self.pip("install", settings.OLD_SETUPTOOLS, settings.WITH_OLD_TORCH["numpy"])

    def torch_is_old(self) -> bool:
        return self.environment.torch_version() < settings.OLD_TORCH

    def constraints(self) -> Path:
        """The versions seen working together, with PyTorch and its Triton as they are: no package may replace them."""
        lines = settings.CONSTRAINTS.read_text().splitlines()
        if self.torch_is_old():
            lines = [settings.WITH_OLD_TORCH.get(line.split("==")[0], line) for line in lines]
        present = self.environment.versions("torch", "triton")
        lines = [line for line in lines if line.split("==")[0] not in present]
        path = self.settings.venv / "constraints.txt"
        path.write_text("\n".join([*lines, *(f"{name}=={version}" for name, version in present.items()), ""]))
        return path

    def install_packages_and_operators(self) -> None:
        """Compile mmcv, where no wheel of it is kept, while pip downloads and installs the rest."""
        if self.settings.operators == "torchvision":
            with self.progress.step("MMDetection, tools, torchvision", TOOLS_SECONDS):
                self.install_rest()
            with self.progress.step("mmcv without operators", 20):
                self.install_without_operators()
            return
        if operators.problem(self.environment) is None:
            with self.progress.step("MMDetection and tools", TOOLS_SECONDS):
                self.install_rest()
            with self.progress.step("mmcv's operators work already", 1):
                return
        facts = self.environment.torch_facts()
        wheel = operators.wheel_for(self.environment, self.constraints(), facts)
        lock = Lock(wheel.lock, f"the same build of mmcv ({wheel.lock.stem})")
        try:
            self._with_wheel(wheel, facts)
        finally:
            lock.release()

    def _with_wheel(self, wheel: operators.Wheel, facts: dict[str, object]) -> None:
        constraints = self.constraints()
        if wheel.find():
            with self.progress.step("MMDetection and tools", TOOLS_SECONDS):
                self.install_rest()
            with self.progress.step(f"mmcv, kept from an earlier set-up in {wheel.folder}", 10):
                problem = self._install_wheel(wheel)
            if problem is None:
                return
            say(f"the kept mmcv does not work here ({self._why(problem)}); compiling it anew")
            wheel.drop()
            self._build(operators.prepare(wheel, self.environment, constraints, facts, self.pip), alone=True)
        else:
            self._build(operators.prepare(wheel, self.environment, constraints, facts, self.pip), alone=False)
        problem = self._install_wheel(wheel)
        if problem is not None:
            wheel.drop()
            fail(f"mmcv's operators do not work: {explain(problem)}")

    def _build(self, build: operators.Build, alone: bool) -> None:
        kind = "plain" if self.settings.operators == "plain" else "few"
        expected = operators.SECONDS[kind] * (4 if build.wheel.gpu and kind == "few" else 1)
        keep_open = self._keep_open()
        job = build.start(kind == "few", keep_open)
        try:
            if not alone:
                with self.progress.step("MMDetection and tools, while mmcv's operators compile", TOOLS_SECONDS):
                    self.install_rest()
            how = "in few units" if kind == "few" else "file by file"
            with self.progress.step(
                f"mmcv's operators, compiled {how} by {system.jobs(build.wheel.gpu)} processes", expected
            ):
                self._compile(build, job, kind)
        except BaseException:
            job.stop()
            raise
        build.finish()

    def _compile(self, build: operators.Build, job: Job, kind: str) -> None:
        try:
            self.progress.watch(job)
        except Failed as failure:
            if kind == "plain" or operators.hopeless(failure):
                self.give_up(failure)
            say("mmcv's sources do not compile in few units here; compiling them file by file, about 20 min")
            plain = build.start(False, self._keep_open())
            try:
                self.watch(plain)
            except BaseException:
                plain.stop()
                raise

    def _install_wheel(self, wheel: operators.Wheel) -> str | None:
        self._replace_mmcv(wheel)
        return operators.problem(self.environment, wheel.gpu)

    def _replace_mmcv(self, wheel: operators.Wheel) -> None:
        """Install a wheel of mmcv; one with operators and one without have other names and the same files."""
        present = self.environment.versions("mmcv", "mmcv-lite", "onedl-mmcv")
        if present:
            self.pip("uninstall", "-y", *present)
        self.pip("install", "--no-deps", str(wheel.find()))

    @staticmethod
    def _why(problem: str) -> str:
        cause = causes.find(problem)
        return cause.way_out if cause else problem.splitlines()[-1]

    def install_without_operators(self) -> None:
        """mmcv's Python alone, and torchvision, whose operators stand in for the ones that it then lacks."""
        build = operators.without(self.environment, self.constraints(), self.pip)
        self.watch(build.start(False, self._keep_open()))
        build.finish()
        self._replace_mmcv(build.wheel)
        build.wheel.drop()

    def install_rest(self) -> None:
        """MMDetection, this package's requirements and the development tools; not this package itself."""
        had_opencv = self.environment.problem("import importlib.util as u; assert u.find_spec('cv2')") is None
        lines = settings.REQUIREMENTS.read_text().splitlines()
        names = [line for line in lines if line and not line.startswith("#")]
        kept = self._kept("mmengine", "mmdet", "triton")
        stack = self.settings.packages
        names = [stack.get(name, name) for name in names if name.split(";")[0] not in kept]
        if self.settings.operators == "torchvision":
            names.append("torchvision")
        constraints = str(self.constraints())
        self.pip("install", "-c", constraints, *names, *MMCV_NEEDS)
        if self.environment.problem("import cv2") is not None:
            self.replace_opencv(had_opencv)
        if self.environment.problem("import mim"):
            self.pip("install", "-c", constraints, stack["mim"])
        # openmim takes it back to one that Python packages of today cannot be built with.
        self.pip("install", settings.OLD_SETUPTOOLS if self.torch_is_old() else settings.SETUPTOOLS)

    def _kept(self, *names: str) -> set[str]:
        """Those that the environment has: a user's may have them from elsewhere, PyTorch for CUDA its own Triton."""
        if self._resuming:
            return self.environment.installed(*names)
        code = f"import importlib.util as u; print(*(name for name in {names!r} if u.find_spec(name)))"
        return set(self.environment.output(code).split())

    def replace_opencv(self, had: bool) -> None:
        """Take the OpenCV without windows on a system without what windows need, such as libGL and libxcb."""
        problem = self.environment.problem("import cv2") or ""
        cause = causes.find(problem)
        if cause is None or cause.name != "opencv" or had:
            fail(f"OpenCV does not import: {explain(problem)}")
        say(f"OpenCV without windows, since {problem.splitlines()[-1].split('ImportError: ')[-1]}")
        self.pip("uninstall", "-y", "opencv-python")
        self.pip("install", "--force-reinstall", "--no-deps", "-c", str(self.constraints()), "opencv-python-headless")

    def install_this(self) -> None:
        with self.progress.step("sa_mmdet, editable", 10):
            self.pip("install", "--no-build-isolation", "--no-deps", "-e", str(settings.REPOSITORY))
            # openmim looks for sa_mmdet/.mim beside the package's metadata, where an editable install has no package.
            link = self.environment.path("purelib") / "sa_mmdet"
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                link.symlink_to(settings.REPOSITORY / "sa_mmdet")
            if self.settings.operators == "torchvision":
                self.watch(self.job(str(self.environment.python), "-m", STAND_INS, "install"))
            problem = self.environment.problem("import mim, sa_mmdet")
            if problem is not None:
                fail(f"installed, but does not import: {explain(problem)}")

    def finish(self) -> None:
        aside = self.settings.stamp.with_suffix(".new")
        aside.write_text(self.state())
        aside.replace(self.settings.stamp)
        self.settings.unfinished.unlink()
        say(f"ready in {self.progress.summary()}")
        say(f"{self._built()}: {self.environment.python}")
        say("next: make demo (trains a detector), make test, or the README's first config")

    def _built(self) -> str:
        names = ("torch", self.settings.packages["mmcv"], self.settings.packages["mmdet"])
        code = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {names!r}), sep=', ')"
        return self.environment.output(code).strip()


def _stop(number: int, frame: FrameType | None) -> None:
    sys.exit(f"make install: stopped by signal {number}; run it again, it goes on from here")


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        Setup(settings.read()).run()
    except KeyboardInterrupt:
        sys.exit("\nmake install: interrupted; run it again, it goes on from here")
    except subprocess.CalledProcessError as error:
        fail(f"{error.cmd} failed with {error.returncode}: {explain(str(error.output or ''))}")
