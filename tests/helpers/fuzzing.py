"""What the fuzzing scripts share: the cost of a run, and their command line."""

import resource
import sys
from collections import Counter
from collections.abc import Callable


def with_costs(answers: Counter, slowest: float) -> Counter:
    """The answers, with the slowest input's seconds and the process's peak memory beside them."""
    answers["slowest, milliseconds"] = int(1e3 * slowest)
    answers["peak memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return answers


def main(fuzz: Callable[[int, int], Counter]) -> None:
    """`python tests/helpers/fuzz_...py COUNT [SEED]`."""
    for answer, times in fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0).most_common():
        print(f"{times:7} {answer}")
