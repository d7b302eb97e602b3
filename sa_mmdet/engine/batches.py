"""Batches that know their number in the training, so that a run can continue with any of them."""

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


def seed_everything(*key: int) -> None:
    """Seed Python's, numpy's and PyTorch's random generators with a number that depends on all keys.

    Args:
        key: Non-negative integers, such as the run's seed and the number of the step.
    """
    [seed] = map(int, np.random.SeedSequence(key).generate_state(1))
    # Not by MMEngine's set_random_seed, which asks for GPUs: the workers of a data loader must not.
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (MMDetection's transforms draw from it)
    torch.manual_seed(seed)


class SeededBatch(list):
    """The indices of a batch; seeds the random generators of the process that iterates over them.

    That process loads the images: a worker of the data loader, or the training itself where there are no workers.
    """

    def __init__(self, indices: Iterable[Any], key: tuple[int, ...]) -> None:
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator[Any]:
        seed_everything(*self.key)
        return super().__iter__()

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would iterate, and so would seed the process that sends the batch to a worker.
        return SeededBatch, (tuple(self[:]), self.key)


class NumberedBatches:
    """A batch sampler that can start at any batch, without loading those before it, and can seed each batch.

    Args:
        batches: The batch sampler that it replaces in a data loader; all its attributes are still found here.
        restart: Called when the sampler has ended before the first batch was reached, with the number of times that it
            has ended; None where the sampler ends with the epoch.
    """

    def __init__(self, batches: Any, restart: Callable[[int], None] | None = None) -> None:
        self._batches = batches
        self._restart = restart
        self._rounds = 0
        self._skipped = 0
        self.base: Callable[[], int] = lambda: 0
        self.seed: tuple[int, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_batches"], name)

    def __len__(self) -> int:
        return len(self._batches)

    def start_at(self, number: int) -> None:
        """Skip so many batches when the next iteration begins."""
        self._skipped = number

    def __iter__(self) -> Iterator[Any]:
        skipped, self._skipped = self._skipped, 0
        number = self.base()
        while True:
            done = 0
            for done, batch in enumerate(self._batches, start=1):
                if done > skipped:
                    yield batch if self.seed is None else SeededBatch(batch, (*self.seed, number + done - 1))
            if not done or done > skipped or self._restart is None:
                return
            skipped -= done
            number += done
            self._rounds += 1
            self._restart(self._rounds)


def samplers_of(loader: DataLoader) -> list[Any]:
    """The samplers of a data loader: its own, and that of its batch sampler, which may be the same."""
    return [
        sampler for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)) if sampler is not None
    ]


def number_batches(loader: DataLoader, restart: Callable[[int], None] | None = None) -> NumberedBatches:
    """Let the batches of a data loader be numbered.

    Args:
        loader: The data loader, before it is iterated over.
        restart: As :class:`NumberedBatches` takes it.

    Returns:
        The data loader's batch sampler from now on, which is the one that it has if this was called before.

    Raises:
        ValueError: The data loader has no batches (``batch_size=None``).
    """
    current: Any = loader.batch_sampler
    if current is None:
        raise ValueError("the data loader gives single images, not batches: set train_dataloader.batch_size")
    if not isinstance(current, NumberedBatches):
        current = NumberedBatches(current, restart)
        # DataLoader refuses to set it by an ordinary assignment, since its iterators may have read it already.
        object.__setattr__(loader, "batch_sampler", current)
    return current
