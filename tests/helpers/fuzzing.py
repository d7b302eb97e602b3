"""What the fuzzing scripts have in common: the limits of an input, the cost of a run, and their command line."""

import contextlib
import faulthandler
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

SECONDS = 10  # of processor time, after which an input counts as a hang
MEMORY = 1 << 10  # MiB that an input may take beyond what the process had


class HangError(BaseException):
    """Not an Exception: nobody may catch it."""


def _too_long(number: int, frame: Any) -> None:
    raise HangError(f"more than {SECONDS} s")


def peak() -> int:
    """The process's largest memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """End what takes too long, and fail if it took too much memory."""
    before = peak()
    signal.signal(signal.SIGVTALRM, _too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    assert peak() - before < MEMORY, f"{peak() - before} MiB"


def with_costs(answers: Counter, slowest: float) -> Counter:
    """Add the time of the slowest input, in milliseconds, and the process's peak memory, in MiB, to the answers."""
    answers["slowest, milliseconds"] = int(1e3 * slowest)
    answers["peak memory, MiB"] = peak()
    return answers


def main(fuzz: Callable[[int, int], Counter]) -> None:
    """`python tests/helpers/fuzz_...py COUNT [SEED]`."""
    faulthandler.enable()
    for answer, times in fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
        print(f"{times:7} {answer}")
