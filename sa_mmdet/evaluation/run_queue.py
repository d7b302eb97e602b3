"""Many runs, several at a time: which are begun, finished, failed, or in the hands of another process."""

import fcntl
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from sa_mmdet.atomic_write import atomic_write_text

from .trainings import LOGS, Training, check_settings, end_of, train_and_test

_END = 65_536  # bytes of a log in which the last line of progress is searched
_ASK_AGAIN = 5.0  # seconds until a run that another process has is looked at again
# MMEngine's line of progress, such as "Epoch(train) [3][20/26] ... eta: 0:05:12 ..." or "Iter(train) [100/9000] ...".
_PROGRESS = re.compile(r"(Epoch|Iter)\(train\) +((?:\[ *\d+\])?\[ *\d+/\d+\]).*?eta: ((?:\d+ days?, )?[\d:]+)")


@contextmanager
def taken(folder: Path) -> Iterator[int | None]:
    """Take a run, so that no other process trains it at the same time.

    The lock is also held by the processes that get its descriptor, and ends with the last of them: a training whose
    driver was killed still holds it.

    Args:
        folder: The run's work directory.

    Yields:
        The lock's descriptor, or None while another process has the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def environment(worker: int, jobs: int, gpus: int) -> dict[str, str]:
    """The environment variables of one of several trainings at a time: its GPU, or its share of the processors.

    Args:
        worker: The number of the worker, from 0.
        jobs: How many trainings run at a time.
        gpus: How many GPUs there are.
    """
    found = dict(os.environ)
    if jobs > 1 and gpus:
        visible = found.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        found["CUDA_VISIBLE_DEVICES"] = visible[worker % len(visible)].strip()
    elif jobs > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    return found


def work(
    runs: Sequence[Training], options: Sequence[str], annotations: str, jobs: int, gpus: int, say: Callable[[str], None]
) -> list[str]:
    """Train and test runs, several at a time. A failed run does not stop the others.

    Runs that another process has are left to it, and waited for.

    Args:
        runs: The runs, in the order in which they are begun.
        options: Further ``KEY=VALUE`` pairs for --cfg-options.
        annotations: The file of annotations that they are tested on.
        jobs: How many run at a time.
        gpus: How many GPUs there are; each training takes one.
        say: Called with a line for each run that begins and ends.

    Returns:
        A sentence for each run that failed.

    Raises:
        ValueError: A run was begun with other settings; then nothing is begun.
    """
    for run in runs:
        check_settings(run)
    waiting, lock = deque(runs), threading.Lock()
    failures: list[str] = []
    told: set[Training] = set()

    def next_run() -> Training | None:
        with lock:
            return waiting.popleft() if waiting else None

    def serve(worker: int) -> None:
        variables = environment(worker, jobs, gpus)
        while (run := next_run()) is not None:
            with taken(run.folder) as descriptor:
                if descriptor is None:
                    with lock:
                        waiting.append(run)
                        again = run in told
                        told.add(run)
                    if not again:
                        say(f"{run.name}: another process has it")
                else:
                    _one(run, options, annotations, variables, descriptor, say, failures)
                    continue
            if again:
                time.sleep(_ASK_AGAIN)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(serve, worker) for worker in range(jobs)]:
                done.result()
        except BaseException:  # the terminal interrupts the trainings, too; none is begun after them
            with lock:
                waiting.clear()
            raise
    return failures


def _one(
    run: Training,
    options: Sequence[str],
    annotations: str,
    variables: dict[str, str],
    descriptor: int,
    say: Callable[[str], None],
    failures: list[str],
) -> None:
    began, failed = time.monotonic(), run.folder / "failed.txt"
    if not run.is_finished:
        say(f"{run.name}: begins (log: {run.folder / LOGS['train']})")
    failed.unlink(missing_ok=True)
    try:
        done = train_and_test(run, options, annotations, variables, (descriptor,))
    except (OSError, ValueError) as error:
        failures.append(str(error))
        atomic_write_text(failed, f"{error}\n")
        say(f"{run.name}: failed: {error}")
        return
    minutes = (time.monotonic() - began) / 60
    say(f"{run.name}: " + (f"finished in {minutes:.1f} min" if done else "finished before"))


def status(runs: Sequence[Training]) -> list[str]:
    """One line for each run: not begun, running, stopped, failed, or finished, and how far its training is.

    Args:
        runs: The runs of a study.
    """
    width = max(len(run.name) for run in runs)
    return [f"{run.name:{width}}  {_state(run)}" for run in runs]


def _state(run: Training) -> str:
    if run.is_finished:
        return "finished"
    if not run.folder.is_dir():
        return "not begun"
    with taken(run.folder) as descriptor:
        running = descriptor is None
    if not running and (run.folder / "failed.txt").is_file():
        return f"failed: {(run.folder / 'failed.txt').read_text().strip()}"
    progress = _progress(run.folder / LOGS["train"])
    if (run.folder / "new").is_dir():
        progress = "is tested" if running else "trained"
    return ("running" if running else "stopped") + (f": {progress}" if progress else "")


def _progress(log: Path) -> str:
    """How far a training is, by the end of its log."""
    if not log.is_file():
        return ""
    found = _PROGRESS.findall(end_of(log, _END))
    if not found:
        return ""
    kind, where, left = found[-1]
    where = where.replace("][", ", step ").strip("[]")
    return f"{'epoch' if kind == 'Epoch' else 'step'} {' '.join(where.split())}, {left} left"
