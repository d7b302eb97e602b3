"""What the user sees: numbered steps with their expected time, progress, a log, and the cause of a failure."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NoReturn

from . import causes

SAY_AGAIN = 30  # seconds between two lines of progress where the output is not a terminal


def fail(message: str) -> NoReturn:
    """Print a message and exit with status 1."""
    sys.exit(f"make install: {message}")


def say(message: str) -> None:
    """Print a message, at once."""
    print(f"==> {message}", flush=True)


def duration(seconds: float) -> str:
    """Write a time in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def explain(output: str) -> str:
    """The last lines of a failed command's output, and the advice for its cause, if that is known."""
    cause = causes.find(output)
    return output[-3000:] + (f"\n  -> {cause.way_out}" if cause else "")


class Failed(Exception):
    """A command ended with an error.

    Args:
        command: The command line.
        output: What it printed.
    """

    def __init__(self, command: str, output: str) -> None:
        super().__init__(command)
        self.command, self.output = command, output


class Job:
    """A running command, whose output is appended to a log.

    Args:
        arguments: The command.
        log: The log file.
        cwd: The folder in which it runs.
        environment: Its environment variables; this process's own if None.
        keep_open: File descriptors that it keeps open.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        log: Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        keep_open: tuple[int, ...] = (),
    ) -> None:
        self.command = shlex.join(arguments)
        self._log = log
        with log.open("a") as stream:
            stream.write(f"\n$ {self.command}\n")
            stream.flush()
            self._start = stream.tell()
            self._process = subprocess.Popen(
                arguments,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=environment,
                pass_fds=keep_open,
                start_new_session=True,
            )

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Kill the command and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def result(self) -> None:
        """Wait until the command ends.

        Raises:
            Failed: It ended with an error.
        """
        code = self._process.wait()
        if code:
            with self._log.open("rb") as stream:
                stream.seek(self._start)
                output = stream.read().decode(errors="replace")
            killed = "\nKilled" if code in (-9, 137) else ""
            raise Failed(self.command, output + killed)


class Progress:
    """Numbers the steps of the set-up and shows how long the current one has been running.

    Args:
        steps: The number of steps.
        log: The log file, which is shown to the user.
        stream: Where progress is printed; standard output if None.
    """

    def __init__(self, steps: int, log: Path, stream: IO[str] | None = None) -> None:
        self._steps, self._log, self._done = steps, log, 0
        self._stream = stream or sys.stdout
        self.began = self._start = time.monotonic()
        self._expected = 0.0
        self.times: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, title: str, expected: float) -> Iterator[None]:
        """Announce a step, and measure how long it takes.

        Args:
            title: What the step does.
            expected: The time that it usually takes, in seconds.
        """
        self._done += 1
        say(f"[{self._done}/{self._steps}] {title}: about {duration(expected)} (log: {self._log})")
        self._start, self._expected = time.monotonic(), expected
        yield
        self.times.append((title, time.monotonic() - self._start))

    def watch(self, job: Job) -> None:
        """Show the time that the step has been running, until one of its jobs ends.

        Raises:
            Failed: The job ended with an error.
        """
        said = time.monotonic()
        terminal = self._stream.isatty()
        try:
            while job.running():
                time.sleep(0.2)
                now = time.monotonic()
                if terminal or now - said > SAY_AGAIN:
                    said = now
                    line = f"    {duration(now - self._start)} of about {duration(self._expected)}"
                    print(f"\r{line}\033[K" if terminal else line, end="" if terminal else "\n", flush=True)
        except BaseException:
            job.stop()
            raise
        finally:
            if terminal:
                print("\r\033[K", end="", flush=True)
        job.result()

    def summary(self) -> str:
        """The time of the whole set-up and of each step."""
        parts = ", ".join(f"{title} {duration(seconds)}" for title, seconds in self.times if seconds >= 1)
        return f"{duration(time.monotonic() - self.began)} ({parts})"
