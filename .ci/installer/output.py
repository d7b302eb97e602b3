"""What the user sees: steps with their expected time, a running line, a log, and one sentence for a failure."""

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

SAY_AGAIN = 30  # seconds between two lines about a step at work where no terminal shows a running one


def fail(message: str) -> NoReturn:
    sys.exit(f"make install: {message}")


def say(message: str) -> None:
    print(f"==> {message}", flush=True)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def explain(output: str) -> str:
    """The last lines of a failed command, its cause and the way out."""
    cause = causes.find(output)
    return output[-3000:] + (f"\n  -> {cause.way_out}" if cause else "")


class Failed(Exception):
    """A command ended with an error; holds its output."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(command)
        self.command, self.output = command, output


class Job:
    """A command at work, its output at the end of the log."""

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
        return self._process.poll() is None

    def stop(self) -> None:
        """End the command and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def result(self) -> None:
        """Wait for the end.

        Raises:
            Failed: It was an error.
        """
        code = self._process.wait()
        if code:
            with self._log.open("rb") as stream:
                stream.seek(self._start)
                output = stream.read().decode(errors="replace")
            killed = "\nKilled" if code in (-9, 137) else ""
            raise Failed(self.command, output + killed)


class Progress:
    """Numbers the steps and shows how long each has been at work."""

    def __init__(self, steps: int, log: Path, stream: IO[str] | None = None) -> None:
        self._steps, self._log, self._done = steps, log, 0
        self._stream = stream or sys.stdout
        self.began = self._start = time.monotonic()
        self._expected = 0.0
        self.times: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, title: str, expected: float) -> Iterator[None]:
        """Announce a step and note how long it took."""
        self._done += 1
        say(f"[{self._done}/{self._steps}] {title}: about {duration(expected)} (log: {self._log})")
        self._start, self._expected = time.monotonic(), expected
        yield
        self.times.append((title, time.monotonic() - self._start))

    def watch(self, job: Job) -> None:
        """Show how long the step has been at work until one of its jobs ends.

        Raises:
            Failed: It ended with an error.
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
        parts = ", ".join(f"{title} {duration(seconds)}" for title, seconds in self.times if seconds >= 1)
        return f"{duration(time.monotonic() - self.began)} ({parts})"
