"""What every runner of MMEngine does while this package is imported: safe checkpoints, exact resumes, SIGTERM."""

import errno
import functools
from collections.abc import Callable
from typing import Any

import mmengine.runner
from mmengine.runner import Runner, checkpoint
from torch.utils.data import DataLoader

from sa_mmdet.compat import Repair, replace_in_openmmlab

from . import check_classes, latest_checkpoint, safe_checkpoint
from .exact_resume import ExactResume, checkpoint_hook
from .frozen_layers import WarnOfFrozenLayers
from .termination import Termination, UndisturbedWorker

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def _runners() -> list[type]:
    flexible = getattr(mmengine.runner, "FlexibleRunner", None)  # from MMEngine 0.8 on
    return [Runner] if flexible is None else [Runner, flexible]


def _wrap(name: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a method of all runners by what ``wrap`` makes of it."""
    for runner in _runners():
        setattr(runner, name, wrap(getattr(runner, name)))


def write_checkpoints_atomically() -> None:
    """Replace MMEngine's save_checkpoint wherever its runners and strategies look it up."""
    save = checkpoint.save_checkpoint
    replace_in_openmmlab(save, safe_checkpoint.save_atomically(save))
    safe_checkpoint.save_before_removing()


def resume_from_complete_checkpoints() -> None:
    """Let runners resume from the newest complete checkpoint, whatever ``last_checkpoint`` names."""
    _wrap("load_or_resume", _choosing)


def _choosing(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def load_or_resume(self: Any) -> None:
        if self._resume and not self._has_loaded:
            named = self._resume if isinstance(self._resume, str) else self._load_from
            if named is None:
                self._load_from = latest_checkpoint.choose(self)
            else:
                latest_checkpoint.check_named(named)
        original(self)

    return load_or_resume


def stop_and_continue_exactly() -> None:
    """Let runners stop at the next step on SIGTERM, and continue with the step after it."""
    _wrap("train", _stopping)
    _wrap("build_dataloader", lambda original: staticmethod(_undisturbed(original)))


def _stopping(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    def train(self: Any) -> Any:
        if checkpoint_hook(self) is None or any(isinstance(hook, ExactResume) for hook in self.hooks):
            return original(self)
        with Termination() as termination:
            self.register_hook(ExactResume(termination), priority="LOWEST")
            try:
                return original(self)
            except OSError as error:
                # Whoever met the full disk first: the log, the visualizer, an evaluation; a checkpoint says it itself.
                if error.errno not in _NO_SPACE or isinstance(error, safe_checkpoint.NotWrittenError):
                    raise
                what = error.filename or "a file"
                raise safe_checkpoint.NotWrittenError(error, str(what), self.work_dir) from error

    return train


def check_class_names() -> None:
    """Let runners look up their class names in the annotations when training, validation or test begins."""
    for name, phases in (("train", ("train", "val")), ("val", ("val",)), ("test", ("test",))):
        _wrap(name, functools.partial(check_classes.checking, phases))


def warn_of_frozen_layers() -> None:
    """Let runners warn of frozen layers that no checkpoint has given their values."""
    _wrap("train", _warning)


def _warning(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(original)
    def train(self: Any) -> Any:
        if not any(isinstance(hook, WarnOfFrozenLayers) for hook in self.hooks):
            self.register_hook(WarnOfFrozenLayers())
        return original(self)

    return train


def _undisturbed(original: Callable[..., DataLoader]) -> Callable[..., DataLoader]:
    @functools.wraps(original)
    def build_dataloader(*arguments: Any, **options: Any) -> DataLoader:
        loader = original(*arguments, **options)
        if loader.num_workers and not isinstance(loader.worker_init_fn, UndisturbedWorker):
            loader.worker_init_fn = UndisturbedWorker(loader.worker_init_fn)
        return loader

    return build_dataloader


REPAIRS = (
    Repair(
        "checkpoints are written whole",
        "MMEngine writes over a checkpoint, and removes an older one before: a kill or a full disk leaves none",
        "every MMEngine so far",
        write_checkpoints_atomically,
    ),
    Repair(
        "--resume takes a complete checkpoint",
        "MMEngine resumes from what last_checkpoint names, damaged or not",
        "every MMEngine so far",
        resume_from_complete_checkpoints,
    ),
    Repair(
        "stops and resumes at a step",
        "MMEngine resumes at an epoch with another order of the images, and SIGTERM ends it at once",
        "every MMEngine so far",
        stop_and_continue_exactly,
    ),
    Repair(
        "class names are looked up in the annotations",
        "MMDetection drops the objects of a class that it does not find, and numbers the others anew",
        "every MMDetection so far",
        check_class_names,
    ),
    Repair(
        "frozen layers without weights are told",
        "a network that is frozen at random values trains for hours, and detects nothing",
        "every MMEngine so far",
        warn_of_frozen_layers,
    ),
)
