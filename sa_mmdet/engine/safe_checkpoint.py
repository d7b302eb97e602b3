"""Checkpoints that stay complete when a run is killed or the disk is full: how MMEngine writes and removes them."""

import functools
import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from sa_mmdet.atomic_write import atomic_write, remove_unfinished

from .exact_resume import STOPPED, average_gradients, saved_at

_MIB = 2**20
Save = Callable[..., None]


def is_local(path: Any) -> bool:
    """Whether a path names a file of this machine, and no address."""
    return "://" not in str(path)


def save_atomically(original: Save) -> Save:
    """Wrap MMEngine's save_checkpoint, so that a file on a local disk is complete or is not there.

    MMEngine (up to 0.10.7) writes to the final file, over a checkpoint of the same name. Other storage works as there.

    Raises:
        OSError: The checkpoint cannot be written; the message says how large it is and how much space is free.
    """

    @functools.wraps(original)
    def save(checkpoint: Any, filename: Any, file_client_args: Any = None, backend_args: Any = None) -> None:
        if not is_local(filename) or file_client_args is not None or backend_args not in (None, {"backend": "local"}):
            return original(checkpoint, filename, file_client_args, backend_args)
        path = Path(filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        memory = io.BytesIO()
        torch.save(checkpoint, memory)
        _write(path, memory.getbuffer())

    return save


def _write(path: Path, content: memoryview) -> None:
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise NotWrittenError(error, f"{path} ({content.nbytes // _MIB} MiB)", path.parent) from error


class NotWrittenError(OSError):
    """A file of a training cannot be written; the message says what that means for the training.

    Args:
        error: The system's error.
        what: What was to be written.
        folder: A folder on the same disk.
    """

    def __init__(self, error: OSError, what: str, folder: str | Path) -> None:
        free = shutil.disk_usage(folder).free // _MIB
        super().__init__(
            error.errno,
            f"{error.strerror}: {what} was not written, {free} MiB are free there. Earlier checkpoints are intact: "
            "free some space, or keep fewer checkpoints (default_hooks.checkpoint.max_keep_ckpts), and continue with "
            "--resume",
        )


def save_before_removing() -> None:
    """Let MMEngine's CheckpointHook, and what inherits from it, remove a checkpoint after its successor is there.

    MMEngine (up to 0.10.7) removes an older checkpoint before it writes the new one.
    """
    for name in ("_save_checkpoint_with_step", "_save_best_checkpoint"):
        setattr(CheckpointHook, name, _saving_first(getattr(CheckpointHook, name)))
    CheckpointHook.before_train = _with_a_clean_folder(CheckpointHook.before_train)


def _saving_first(original: Callable[..., None]) -> Callable[..., None]:
    for_resuming = original.__name__ == "_save_checkpoint_with_step"

    @functools.wraps(original)
    def save(self: CheckpointHook, runner: Any, *arguments: Any, **options: Any) -> None:
        backend = getattr(self, "file_backend", None)
        if backend is None:  # before_train was not called: an evaluation alone
            return original(self, runner, *arguments, **options)
        with ExitStack() as stack:
            if for_resuming:
                average_gradients(runner)
                stack.enter_context(saved_at(runner, dict(options["meta"] if "meta" in options else arguments[1])))
            stack.enter_context(_removing_last(self, runner))
            original(self, runner, *arguments, **options)
        if for_resuming and isinstance(backend, LocalBackend) and is_main_process():
            (Path(self.out_dir) / STOPPED).unlink(missing_ok=True)  # what replaces it has been saved

    return save


@contextmanager
def _removing_last(hook: CheckpointHook, runner: Any) -> Iterator[None]:
    """Delay the removal of old checkpoints until the new one has been written."""
    backend = hook.file_backend
    if "remove" in backend.__dict__:  # the best checkpoint's saving saves another one
        yield
        return
    waiting: list[tuple[Callable[[Any], None], Any]] = []
    for name in ("remove", "rmtree"):  # of files, of folders (sharded checkpoints)
        removal = getattr(backend, name)
        setattr(backend, name, lambda path, removal=removal: waiting.append((removal, path)))
    saved: list[str] = []
    save = runner.save_checkpoint

    def noted(out_dir: Any, filename: Any, *arguments: Any, **options: Any) -> None:
        if options.get("meta") is not None:  # FlexibleRunner changes it, and the hook uses it again
            options["meta"] = dict(options["meta"])
        save(out_dir, filename, *arguments, **options)
        saved.append(str(backend.join_path(out_dir, filename)))

    runner.save_checkpoint = noted
    try:
        yield
    finally:
        for name in ("remove", "rmtree"):
            delattr(backend, name)
        del runner.save_checkpoint
    for removal, path in waiting:
        if str(path) not in saved:  # a name without a number is used again
            removal(path)


def _with_a_clean_folder(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def before_train(self: CheckpointHook, runner: Any) -> None:
        original(self, runner)
        if is_local(self.out_dir) and is_main_process():
            remove_unfinished(self.out_dir)

    return before_train
