"""A repair of what MMEngine's CheckpointHook removes: files of its own run, whatever a resumed checkpoint says."""

import functools
import logging
import os
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log


def remove_nothing_elsewhere() -> None:
    """Let the hook remove its own run's checkpoints alone.

    A checkpoint records the path of the best one, which the hook (every MMEngine so far) removes with everything in it
    at the next best score, and the steps of those that are kept, which it puts into names of files.
    """
    begin = CheckpointHook.before_train

    @functools.wraps(begin)
    def before_train(self: Any, runner: Any) -> None:
        recorded = runner.message_hub.runtime_info
        kept = recorded.get("keep_ckpt_ids")
        if kept is not None:
            recorded["keep_ckpt_ids"] = [step for step in kept if type(step) is int] if isinstance(kept, list) else []
        begin(self, runner)

    CheckpointHook.before_train = before_train
    for name in ("_save_best_checkpoint", "after_train"):  # which remove the best checkpoint, or publish it beside it
        setattr(CheckpointHook, name, _forgetting_others(getattr(CheckpointHook, name)))


def _forgetting_others(original: Any) -> Any:
    @functools.wraps(original)
    def method(self: Any, *arguments: Any, **options: Any) -> Any:
        if getattr(self, "best_ckpt_path", None) is not None and not _is_own_best(self.best_ckpt_path, self.out_dir):
            self.best_ckpt_path = None
        paths = getattr(self, "best_ckpt_path_dict", {})
        for metric, path in paths.items():
            if path is not None and not _is_own_best(path, self.out_dir):
                paths[metric] = None
        return original(self, *arguments, **options)

    return method


def _is_own_best(path: Any, folder: str) -> bool:
    """Whether a path is that of a best checkpoint in the run's own folder; addresses are compared as text."""
    if isinstance(path, str) and os.path.basename(path).startswith("best_"):
        parent = os.path.dirname(path)
        if parent == folder or ("://" not in path and os.path.realpath(parent) == os.path.realpath(folder)):
            return True
    print_log(
        f"the resumed checkpoint records {path!r:.200} as the best one, which is not in this run's folder {folder}: it "
        "stays where it is",
        logger="current",
        level=logging.WARNING,
    )
    return False
