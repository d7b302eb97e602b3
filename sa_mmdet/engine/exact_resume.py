"""Stopping at a step and going on with the next: what a checkpoint lacks for that, saved and restored."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn

from sa_mmdet.atomic_write import atomic_write_text

from .batches import samplers_of
from .position import continue_loop, renew_loader
from .schedules import changed_settings
from .termination import EXIT_STATUS, Termination

STOPPED = "stopped.pth"
_STATE = "sa_mmdet"  # the key of a checkpoint's meta that holds ours
_GRADIENTS = "accumulated_gradients"


def checkpoint_hook(runner: Any) -> CheckpointHook | None:
    """The hook that saves a runner's checkpoints, None if it has none."""
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


class ExactResume(Hook):
    """Let ``--resume`` go on with the step after the last one that a checkpoint has seen, and save one on SIGTERM.

    Every runner has it while it trains. MMEngine resumes at the beginning of an epoch, with another order of the images
    unless ``randomness.seed`` is set, and without gradients that were accumulated. Saved here are also the samplers'
    seeds and these gradients. On SIGTERM the run saves ``stopped.pth`` at the next step, also during an evaluation, and
    ends with exit status 143; while gradients are accumulated in several processes, at the next update.

    Args:
        termination: Tells of SIGTERM.
    """

    priority = "LOWEST"  # after all that changes the state of the training

    def __init__(self, termination: Termination) -> None:
        self._termination = termination
        self._loaded: dict[str, Any] | None = None
        self._evaluation_due = False
        self._agreed_steps = 0

    # Saving

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint["meta"]
        position = getattr(runner, "_sa_mmdet_position", None)
        if position is not None:
            meta.update(position)
        if "optimizer" not in checkpoint:
            return
        meta[_STATE] = dict(sampler_seeds=_sampler_seeds(runner), evaluation_due=self._evaluation_due)
        if is_accumulating(runner):
            gradients = {name: tensor.grad for name, tensor in _parameters(runner) if tensor.grad is not None}
            checkpoint[_GRADIENTS] = {name: gradient.detach().cpu() for name, gradient in gradients.items()}

    # Restoring

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            state = checkpoint.get("meta", {}).get(_STATE, {})
            self._loaded = dict(state, gradients=checkpoint.pop(_GRADIENTS, {}))
            changes = list(changed_settings(runner.param_schedulers, checkpoint.get("param_schedulers")))
            if changes:
                runner.logger.warning(
                    f"--resume: the schedule is the checkpoint's, not the config's ({'; '.join(changes)}); "
                    "to train with the config's, begin a run with load_from=CHECKPOINT instead of --resume"
                )

    def before_train(self, runner: Any) -> None:
        self._termination.connect()
        renew_loader(runner)
        if self._loaded is not None:
            _set_sampler_seeds(runner, self._loaded.get("sampler_seeds", []))
            _restore_gradients(runner, self._loaded["gradients"])
        problem = continue_loop(runner.train_loop)
        if problem is not None:
            runner.logger.warning(f"--resume: {problem}")
        if self._loaded is not None and self._loaded.get("evaluation_due") and runner.val_loop is not None:
            runner.val_loop.run()
        self._loaded = None

    # Stopping

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._termination.agreed() and not (get_world_size() > 1 and is_accumulating(runner)):
            self._stop(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Any) -> None:
        # Processes that have fewer batches than others must not be waited for.
        self._agreed_steps = self._termination.fewest(len(runner.val_dataloader))

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if batch_idx < self._agreed_steps and self._termination.agreed():
            self._evaluation_due = True
            self._stop(runner, runner.iter)

    def _stop(self, runner: Any, done: int) -> None:
        hook: Any = checkpoint_hook(runner)
        runner.logger.warning(f"SIGTERM: saving {STOPPED} after {done} steps")
        position = dict(epoch=runner.epoch, iter=done)
        storage = dict(backend_args=hook.backend_args, file_client_args=hook.file_client_args)
        with saved_at(runner, position):
            runner.save_checkpoint(hook.out_dir, STOPPED, meta=dict(position), by_epoch=False, **storage)
        if is_main_process():
            path = str(hook.file_backend.join_path(hook.out_dir, STOPPED))
            atomic_write_text(Path(runner.work_dir) / "last_checkpoint", path)
        barrier()  # no launcher ends the process that is still writing, since another one has ended
        runner.logger.warning("SIGTERM: the training has been saved and ends here; --resume continues it")
        sys.exit(EXIT_STATUS)


@contextmanager
def saved_at(runner: Any, position: Mapping[str, Any]) -> Iterator[None]:
    """Let a checkpoint that is saved meanwhile record this epoch and iteration; FlexibleRunner records others."""
    runner._sa_mmdet_position = position
    try:
        yield
    finally:
        del runner._sa_mmdet_position


def is_accumulating(runner: Any) -> bool:
    """Whether gradients of past steps wait for an update."""
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict) or getattr(wrapper, "_accumulative_counts", 1) == 1:
        return False
    return wrapper._inner_count % wrapper._accumulative_counts != 0 and wrapper._inner_count != wrapper._max_counts


def average_gradients(runner: Any) -> None:
    """Make accumulated gradients the same in all processes, so that one checkpoint holds them; all processes call it.

    Their mean is what the next update would use: each process has a part of the batch.
    """
    if get_world_size() > 1 and is_accumulating(runner) and not _is_sharded(runner):
        for _, parameter in _parameters(runner):
            if parameter.grad is not None:
                all_reduce(parameter.grad, "mean")


def _is_sharded(runner: Any) -> bool:
    return "FullyShardedDataParallel" in type(runner.model).__name__


def _parameters(runner: Any) -> list[tuple[str, nn.Parameter]]:
    if _is_sharded(runner):  # each process has another part
        return []
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return list(model.named_parameters())


def _restore_gradients(runner: Any, gradients: dict[str, Tensor]) -> None:
    parameters = dict(_parameters(runner)) if gradients else {}
    with torch.no_grad():
        for name, gradient in gradients.items():
            if name not in parameters or parameters[name].shape != gradient.shape:
                raise ValueError(f"--resume: the accumulated gradient of {name!r} does not fit the model")
            parameters[name].grad = gradient.to(parameters[name])
    if gradients:
        runner.logger.info(f"Restored the accumulated gradients of {len(gradients)} parameters")


def _samplers(runner: Any) -> list[Any]:
    samplers = samplers_of(runner.train_dataloader)
    return [sampler for sampler in samplers if isinstance(getattr(sampler, "seed", None), int)]


def _sampler_seeds(runner: Any) -> list[int]:
    return [sampler.seed for sampler in _samplers(runner)]


def _set_sampler_seeds(runner: Any, seeds: Any) -> None:
    """Take the seeds of the run that was stopped; without ``randomness.seed`` each start draws others."""
    samplers = _samplers(runner)
    if isinstance(seeds, list) and len(seeds) == len(samplers) and all(type(seed) is int for seed in seeds):
        for sampler, seed in zip(samplers, seeds, strict=True):
            sampler.seed = seed
