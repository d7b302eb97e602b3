"""What the fuzzing scripts have in common: the cost of a run, and their command line."""

import resource
import sys
from collections import Counter
from collections.abc import Callable


def with_costs(answers: Counter, slowest: float) -> Counter:
    """Add the time of the slowest input, in milliseconds, and the process's peak memory, in MiB, to the answers."""
    answers["slowest, milliseconds"] = int(1e3 * slowest)
    answers["peak memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return answers


def main(fuzz: Callable[[int, int], Counter]) -> None:
    """`python tests/helpers/fuzz_...py COUNT [SEED]`."""
    for answer, times in fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
        print(f"{times:7} {answer}")
