"""Where a training stands: continuing an epoch in its middle, and iterations without loading those that are done."""

import functools
from collections.abc import Mapping
from typing import Any

from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from .batches import NumberedBatches, number_batches, samplers_of


def numbered(loop: Any) -> NumberedBatches:
    """Let the batches of a training loop be numbered; see :func:`sa_mmdet.engine.batches.number_batches`."""
    loader = loop.dataloader
    if not isinstance(loop, IterBasedTrainLoop):
        batches = number_batches(loader)
        batches.base = lambda: loop.epoch * len(loader)
        return batches

    def restart(rounds: int) -> None:
        loop.dataloader_iterator._epoch = rounds
        for sampler in samplers_of(loader):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(rounds)
                break

    batches = number_batches(loader, restart)
    batches.base = lambda: loop.dataloader_iterator._epoch * len(loader)
    return batches


class _Continued:
    """An iterator over batches of which the first are done: the loop asks for them, and they are not loaded."""

    def __init__(self, loop: IterBasedTrainLoop) -> None:
        self._done = loop.iter
        previous: Any = loop.dataloader_iterator
        self._iterator = type(previous)(loop.dataloader)
        self._iterator._epoch = previous._epoch  # workers are sent their first batches at once

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_iterator"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        target = self if name in ("_done", "_iterator") else self._iterator
        object.__setattr__(target, name, value)

    def __iter__(self) -> "_Continued":
        return self

    def __next__(self) -> Any:
        if self._done:
            self._done -= 1
            return None
        return next(self._iterator)


class _Same:
    """Stands for a data set in a config that is about to be copied; the copy holds the data set itself."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __deepcopy__(self, memo: Any) -> Any:
        return self._dataset


def renew_loader(runner: Any) -> None:
    """Make the data loader of an iteration loop anew, around the same data set.

    MMEngine's loop begins to load as soon as it is made, before a checkpoint has said with which batch to begin, and
    its infinite samplers cannot go back.

    Args:
        runner: Whose training is about to begin.
    """
    loop, options = runner.train_loop, runner._train_dataloader
    before = loop.dataloader.batch_sampler
    if not isinstance(loop, IterBasedTrainLoop) or not isinstance(options, Mapping):
        return
    if not loop.iter and not isinstance(before, NumberedBatches):
        return
    for worker in getattr(getattr(loop.dataloader_iterator, "_iterator", None), "_workers", ()):
        worker.terminate()  # PyTorch would wait some seconds for those that are loading
    options = {name: value for name, value in options.items() if name != "num_batch_per_epoch"}
    loop.dataloader = runner.build_dataloader(
        dict(options, dataset=_Same(loop.dataloader.dataset)),
        seed=runner.seed,
        diff_rank_seed=runner._randomness_cfg.get("diff_rank_seed", False),
    )
    if isinstance(before, NumberedBatches):
        numbered(loop).seed = before.seed


def continue_loop(loop: Any) -> str | None:
    """Let a training loop continue with the batch after those that its ``iter`` counts.

    Args:
        loop: A loop whose ``epoch`` and ``iter`` a checkpoint has set.

    Returns:
        What cannot be continued exactly, None if all can.
    """
    if isinstance(loop, IterBasedTrainLoop):
        if loop.iter or isinstance(loop.dataloader.batch_sampler, NumberedBatches):
            numbered(loop).start_at(loop.iter)
            loop.dataloader_iterator = _Continued(loop)
        return None
    if not isinstance(loop, EpochBasedTrainLoop):
        return f"{type(loop).__name__} is not one of MMEngine's loops" if loop.iter else None
    length = len(loop.dataloader)
    done = loop.iter - loop.epoch * length
    if not 0 <= done <= length:
        return (
            f"the checkpoint has seen {loop.iter} batches in {loop.epoch} epochs, and an epoch has {length} now: the "
            "epoch begins anew"
        )
    if done:
        numbered(loop).start_at(done)
        _count_from(loop, done)
    return None


def _count_from(loop: Any, done: int) -> None:
    """Let hooks of this epoch get the batch's number in the epoch, which MMEngine counts from zero after a resume."""
    epoch, run_iter = loop.epoch, loop.run_iter

    @functools.wraps(run_iter)
    def counted(idx: int, data_batch: Any) -> None:
        run_iter(idx + done if loop.epoch == epoch else idx, data_batch)

    loop.run_iter = counted
