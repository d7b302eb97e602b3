"""Random numbers that depend only on the seed and the epoch, so that a resumed run draws the same ones."""

import functools
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module()
class SeedEpochs(Hook):
    """Seed every random generator before each epoch, from the run's seed, the epoch and the rank.

    A run that was stopped and resumed then draws the same flips, crops and sampled proposals as a run that was not.
    MMEngine seeds once, so that a resumed run repeats the first epoch's numbers. Works with epoch-based loops. The
    data loader's persistent workers are restarted in each epoch, since running workers cannot be seeded.
    """

    # Runs before every other hook that could draw numbers in the epoch.
    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        # 31 bits: MMEngine adds the workers' numbers, and numpy takes at most 32 bits.
        [seed] = np.random.SeedSequence((runner.seed, runner.epoch)).generate_state(1) >> 1
        # Whether algorithms are deterministic was set when the run began.
        set_random_seed(int(seed), diff_rank_seed=runner._randomness_cfg.get("diff_rank_seed", False))
        loader: Any = runner.train_dataloader
        initialise = loader.worker_init_fn
        if isinstance(initialise, functools.partial) and "seed" in initialise.keywords:
            loader.worker_init_fn = functools.partial(initialise, seed=int(seed))
        loader._iterator = None
