"""Computing the same with several numbers of threads."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def assert_threads_change_no_bit(function: Callable[[], Iterable[Tensor]]) -> None:
    """Assert that a function's tensors are the same with one, two and three threads."""
    results = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(list(function()))
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))
