"""Many runs, several at a time: each is trained by one process alone, whichever of several commands began it."""

import errno
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from sa_mmdet.atomic_write import atomic_write_text

from .checkpoints import remove_checkpoints
from .launching import environment
from .training import FAILED, LOGS, Training
from .trainings import StoppedError, train_and_test

_ASK_AGAIN = 5.0  # seconds until a run that another process has is looked at again
_LOOKED_AT = 1.0  # seconds within which those let go of it that only look whether it is running
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system without them
_READ_ONLY = (errno.EROFS, errno.EACCES)


class Screen(Protocol):
    """Tells the user what happens."""

    def say(self, text: str) -> None:
        """Print a line."""

    def begins(self, run: Training) -> None:
        """A run begins."""

    def ends(self, run: Training) -> None:
        """A run has ended, finished or not."""


@contextmanager
def taken(folder: Path, patience: float = 0.0) -> Iterator[int | None]:
    """Take a run, so that no other process trains it at the same time.

    The lock is also held by the processes that get its descriptor, and ends with the last of them: a training whose
    driver was killed still holds it.

    Args:
        folder: The run's work directory.
        patience: Seconds to try for.

    Yields:
        The lock's descriptor, or None while another process has the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:  # whoever may only read can still see whether it is taken
        if error.errno not in _READ_ONLY:
            raise
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    try:
        yield descriptor if _locked(descriptor, time.monotonic() + patience) else None
    finally:
        os.close(descriptor)


def _locked(descriptor: int, until: float) -> bool:
    """Lock an open file; whether that was possible, or needless on a file system without locks."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return True
        else:
            return True


def has_locks(folder: Path) -> bool:
    """Whether commands that share a folder see each other's locks.

    Args:
        folder: A run's work directory, which is made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _NO_LOCKS
    return True


def work(
    runs: Sequence[Training], jobs: int, gpus: int, screen: Screen, keep: str = "all", wait: bool = True
) -> list[str]:
    """Train and test runs, several at a time. A failed run does not stop the others.

    Runs that another process has are left to it.

    Args:
        runs: The runs, in the order in which they are begun.
        jobs: How many run at a time.
        gpus: How many GPUs there are; each process of a training takes one.
        screen: Is told of each run that begins and ends.
        keep: Which checkpoints of finished runs to keep: see :func:`.checkpoints.remove_checkpoints`.
        wait: Whether to wait for runs that another process has, and to take them over if it ends before they do.

    Returns:
        A sentence for each run that failed.
    """
    waiting, lock = deque(runs), threading.Lock()
    failures: list[str] = []
    told: set[Training] = set()

    def next_run() -> Training | None:
        with lock:
            return waiting.popleft() if waiting else None

    def serve(worker: int) -> None:
        while (run := next_run()) is not None:
            try:
                with taken(run.folder, _LOOKED_AT) as descriptor:
                    if descriptor is not None:
                        variables = environment(worker, jobs, run.processes, gpus)
                        failures.extend(_one(run, variables, descriptor, screen, keep))
                        continue
            except OSError as error:  # of this run's folder, such as a file in its place
                screen.say(f"{run.name}: failed: {error}")
                failures.append(f"{run.name}: {error}")
                continue
            with lock:
                if wait:
                    waiting.append(run)
                again = run in told
                told.add(run)
            if again:
                time.sleep(_ASK_AGAIN)
            else:
                screen.say(f"{run.name}: another process has it")

    with suppress(OSError):  # which the run's own attempt will name
        if not has_locks(runs[0].folder):
            screen.say(
                f"{runs[0].folder}: this disk has no locks, so that commands which share it do not see each other: "
                "call this once at a time"
            )
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(serve, worker) for worker in range(jobs)]:
                done.result()
        except BaseException:  # the terminal interrupts the trainings, too; none is begun after them
            with lock:
                waiting.clear()
            raise
    return failures


def _one(run: Training, variables: dict[str, str], descriptor: int, screen: Screen, keep: str) -> list[str]:
    """Train and test a run; return why it failed, if it did."""
    began, failed = time.monotonic(), run.folder / FAILED
    if not run.is_finished:
        screen.say(f"{run.name}: begins (log: {run.folder / LOGS['train']})")
    screen.begins(run)
    try:
        failed.unlink(missing_ok=True)
        done = train_and_test(run, variables, (descriptor,))
        remove_checkpoints(run.folder, keep)
        seconds = time.monotonic() - began
        if done:
            run.note(seconds=seconds + run.seconds)
    except (OSError, ValueError) as error:
        stopped = isinstance(error, StoppedError)
        with suppress(OSError):  # of a full disk
            run.note(seconds=time.monotonic() - began + run.seconds)
            if not stopped:
                atomic_write_text(failed, f"{error}\n")
        screen.say(f"{run.name}: {'stopped' if stopped else f'failed: {error}'}")
        return [str(error)]
    finally:
        screen.ends(run)
    screen.say(f"{run.name}: " + (f"finished in {seconds / 60:.1f} min" if done else "finished before"))
    return []
