"""Installing mmcv with its operators, from a kept wheel or compiled; or without them, on torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import causes, cuda, operators, system
from .commands import Commands
from .environment import Lock
from .output import Failed, Job, explain, fail, say
from .packages import Packages

_PACKAGES_SECONDS = 60  # that pip takes for the packages


class Mmcv:
    """Installs mmcv, and the other packages meanwhile.

    Args:
        commands: Runs pip and the compiler.
        packages: The other packages.
        install_this: Installs this package, which is done before mmcv is there: it then waits for nothing.
    """

    def __init__(self, commands: Commands, packages: Packages, install_this: Callable[[], None]) -> None:
        self._commands, self._packages, self._install_this = commands, packages, install_this
        self._environment, self._progress = commands.environment, commands.progress

    def install(self) -> None:
        """Install mmcv as the user chose, and the other packages."""
        if self._environment.settings.operators == "torchvision":
            self._install_others("MMDetection, tools, torchvision")
            with self._progress.step("mmcv without operators", 20):
                self._install_without_operators()
        elif operators.problem(self._environment) is None:
            self._install_others("MMDetection and tools")
            with self._progress.step("mmcv's operators work already", 1):
                pass
        else:
            facts = self._environment.torch_facts()
            wheel = operators.wheel_for(self._environment, self._packages.constraints(), facts)
            lock = Lock(wheel.lock, f"the same build of mmcv ({wheel.lock.stem})")
            try:
                self.install_compiled(wheel, facts)
            finally:
                lock.release()

    def _install_others(self, title: str) -> None:
        with self._progress.step(title, _PACKAGES_SECONDS):
            self._packages.install()
        self._install_this()

    def install_compiled(self, wheel: operators.Wheel, facts: dict[str, Any]) -> None:
        """Install a kept wheel of mmcv, or compile it while pip downloads and installs the other packages.

        Args:
            wheel: The wheel that fits the environment; it need not exist yet.
            facts: What compiled operators depend on.
        """
        if wheel.find():
            self._install_others("MMDetection and tools")
            with self._progress.step(f"mmcv, kept from an earlier set-up in {wheel.folder}", 10):
                problem = self._install_wheel(wheel)
            if problem is None:
                return
            say(f"the kept mmcv does not work here ({_reason(problem)}); compiling it again")
            wheel.delete()
            self._compile(wheel, facts, alone=True)
        else:
            self._compile(wheel, facts, alone=False)
        problem = self._install_wheel(wheel)
        if problem is not None:
            wheel.delete()
            fail(f"mmcv's operators do not work: {explain(problem)}")

    def _compile(self, wheel: operators.Wheel, facts: dict[str, Any], alone: bool) -> None:
        """Compile mmcv; unless ``alone``, install the other packages at the same time."""
        build = operators.prepare(wheel, self._environment, self._packages.constraints(), facts, self._commands.pip)
        grouped = self._environment.settings.operators != "plain"
        expected = operators.SECONDS["few" if grouped else "plain"]
        if wheel.gpu and grouped:  # 26 minutes of one core for two kinds of GPUs
            expected *= 2 + 3 * len(cuda.architectures(facts).split(";"))
        job = build.start(grouped, self._commands.descriptors)
        try:
            if not alone:
                self._install_others("MMDetection and tools, while mmcv's operators compile")
            how = "in few units" if grouped else "file by file"
            with self._progress.step(
                f"mmcv's operators, compiled {how} by {system.jobs(wheel.gpu)} processes", expected
            ):
                self._watch(build, job, grouped)
        except BaseException:
            job.stop()
            raise
        build.finish()

    def _watch(self, build: operators.Build, job: Job, grouped: bool) -> None:
        """Wait for a build; compile file by file where the grouped units do not compile."""
        try:
            self._progress.watch(job)
        except Failed as failure:
            if not grouped or operators.fails_either_way(failure):
                self._commands.give_up(failure)
            say("mmcv's sources do not compile in few units here; compiling them file by file, about 20 min")
            plain = build.start(False, self._commands.descriptors)
            try:
                self._commands.watch(plain)
            except BaseException:
                plain.stop()
                raise

    def _install_wheel(self, wheel: operators.Wheel) -> str | None:
        """Install a wheel; returns why its operators do not work, or None."""
        self._replace_mmcv(wheel)
        return operators.problem(self._environment, wheel.gpu)

    def _replace_mmcv(self, wheel: operators.Wheel) -> None:
        # mmcv with operators and mmcv without have different names and the same files: the old one goes first.
        present = self._environment.versions("mmcv", "mmcv-lite", "onedl-mmcv")
        if present:
            self._commands.pip("uninstall", "-y", *present)
        self._commands.pip("install", "--no-deps", str(wheel.find()))

    def _install_without_operators(self) -> None:
        build = operators.python_only(self._environment, self._packages.constraints(), self._commands.pip)
        self._commands.watch(build.start(False, self._commands.descriptors))
        build.finish()
        self._replace_mmcv(build.wheel)
        build.wheel.delete()


def _reason(problem: str) -> str:
    """A problem in one line: its cause, or the last line of its output."""
    cause = causes.find(problem)
    return cause.way_out if cause else problem.splitlines()[-1]
