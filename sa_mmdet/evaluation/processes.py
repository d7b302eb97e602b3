"""Work in two processes, which share what is in memory when they begin."""

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
AT_ONCE = 2


def in_processes(
    work: Callable[[Item], Answer],
    items: Sequence[Item],
    described: Callable[[Item], str],
    done: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """Call a function for each of several items, two at a time in processes of their own.

    Args:
        work: The function. What it refers to is shared, and only items and answers are sent.
        items: The items.
        described: What is done with an item, for the error.
        done: Is called after each item, in their order.

    Returns:
        The answers.

    Raises:
        ValueError: A process was killed. What the function raises is raised, too.
    """
    # A pool of multiprocessing would wait for a process that was killed, for ever.
    pool = ProcessPoolExecutor(AT_ONCE, multiprocessing.get_context("fork"), initializer=_begin, initargs=(work,))
    answers: list[Answer] = []
    with pool:
        waiting = [pool.submit(_do, item) for item in items]
        try:
            for item, answer in zip(items, waiting, strict=True):
                try:
                    answers.append(answer.result())
                except BrokenProcessPool as error:
                    raise ValueError(f"{described(item)} was killed: is there enough memory for it?") from error
                done()
        finally:
            pool.shutdown(cancel_futures=True)
    return answers


@contextmanager
def no_collection() -> Iterator[None]:
    """Do not look for garbage meanwhile, which takes long where many objects are made that all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_work: Callable[[Any], Any]  # of a process that works


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    gc.freeze()  # no collection of garbage writes into the shared memory, which would copy it


def _do(item: Any) -> Any:
    return _work(item)
