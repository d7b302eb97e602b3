"""Running the commands of a set-up: in the environment, with progress shown and failures explained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from . import settings
from .environment import Environment, Lock
from .output import Failed, Job, Progress, explain, fail


class Commands:
    """Runs pip and other commands for one environment.

    Args:
        environment: The environment that they change.
        steps: The number of steps that the whole set-up has.
    """

    def __init__(self, environment: Environment, steps: int) -> None:
        self.environment = environment
        self.progress = Progress(steps, environment.settings.log)
        self._lock: Lock | None = None

    def lock(self, path: Path) -> None:
        """Hold a lock until this process and all commands that it has started end."""
        self._lock = Lock(path, str(path.parent))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The file descriptors that commands keep open."""
        return (self._lock.descriptor,) if self._lock else ()

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Job:
        """Start a command in the repository's folder."""
        return Job(arguments, self.environment.settings.log, settings.REPOSITORY, environment, self.descriptors)

    def pip(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Run pip in the environment; on a failure explain it and exit."""
        command = (str(self.environment.python), "-m", "pip", *arguments[:1], "--disable-pip-version-check")
        if arguments[0] == "install":
            command += ("--no-compile",)  # a third of pip's time; Python compiles what is imported, once
        self.watch(self.start(*command, *arguments[1:], environment=environment))

    def watch(self, job: Job) -> None:
        """Wait for a command; on a failure explain it and exit."""
        try:
            self.progress.watch(job)
        except Failed as failure:
            self.give_up(failure)

    def give_up(self, failure: Failed) -> NoReturn:
        """Exit with a failed command's output, its cause and what to do."""
        fail(f"{failure.command} failed, its log is {self.environment.settings.log}\n{explain(failure.output)}")
