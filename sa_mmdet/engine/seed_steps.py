"""Random numbers that depend only on the seed and the step, so that a resumed run draws the same ones."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sa_mmdet.registry import register

from .batches import seed_everything
from .position import numbered

_DATA, _STEP, _EPOCH = range(3)  # so that the three never draw the same numbers


@register(HOOKS, "SeedSteps", "SeedEpochs")
class SeedSteps(Hook):
    """Seed every random generator before each step and each batch, from the run's seed and their number.

    A run that was stopped and resumed, even in the middle of an epoch, then draws the same flips, crops and sampled
    proposals as a run that was not, with any number of workers. MMEngine seeds once, so that a resumed run repeats the
    first epoch's numbers. Each process loads its own images by its own numbers; in the model the processes draw the
    same ones unless ``randomness.diff_rank_seed`` is set, as in MMEngine. ``SeedEpochs`` is its former name.
    """

    # Runs before every other hook that could draw numbers.
    priority = "VERY_HIGH"

    def before_train(self, runner: Any) -> None:
        numbered(runner.train_loop).seed = (runner.seed, _DATA, get_rank())

    def before_train_epoch(self, runner: Any) -> None:
        # Samplers that have no seed of their own draw from the process's generators when an epoch begins.
        seed_everything(*self._key(runner, _EPOCH), runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        seed_everything(*self._key(runner, _STEP), runner.iter)

    @staticmethod
    def _key(runner: Any, what: int) -> tuple[int, ...]:
        return runner.seed, what, get_rank() if runner._randomness_cfg.get("diff_rank_seed", False) else 0
