"""Random numbers that depend on the epoch alone, not on what was drawn before."""

import functools
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed


@HOOKS.register_module()
class SeedEpochs(Hook):
    """Seed every generator anew before each epoch, from the run's seed, the epoch and the rank.

    A run that was stopped and resumed then draws what the undisturbed run would have drawn: flips, crops, proposals
    that are sampled. MMEngine seeds once, so that a resumed run repeats the first epoch's numbers. For loops by epoch;
    persistent workers of the data loader are started anew with each epoch, since running ones cannot be seeded.
    """

    # After what draws once before training, ahead of all that could draw in the epoch.
    priority = "VERY_HIGH"

    def before_train_epoch(self, runner: Runner) -> None:
        # 31 bits, for MMEngine adds the workers' numbers and numpy takes 32.
        [seed] = np.random.SeedSequence((runner.seed, runner.epoch)).generate_state(1) >> 1
        # Deterministic algorithms, if wanted, were chosen when the run began.
        set_random_seed(int(seed), diff_rank_seed=runner._randomness_cfg.get("diff_rank_seed", False))
        loader: Any = runner.train_dataloader
        initialise = loader.worker_init_fn
        if isinstance(initialise, functools.partial) and "seed" in initialise.keywords:
            loader.worker_init_fn = functools.partial(initialise, seed=int(seed))
        loader._iterator = None
