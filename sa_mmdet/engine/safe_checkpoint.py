"""Checkpoints that stay complete when a run is killed or the disk is full."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from sa_mmdet.atomic_write import atomic_write, remove_unfinished

_ATOMIC_BACKEND = "sa_mmdet.atomic_files"
_MIB = 2**20


class _AtomicFiles(LocalBackend):
    """The local file system, with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(obj)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free // _MIB
            raise OSError(
                error.errno,
                f"{error.strerror}: {path} ({len(obj) // _MIB} MiB) was not written, {free} MiB are free there. "
                "Earlier checkpoints are intact: free some space, or keep fewer checkpoints "
                "(default_hooks.checkpoint.max_keep_ckpts), and continue with --resume",
            ) from error


register_backend(_ATOMIC_BACKEND, _AtomicFiles, force=True)


@HOOKS.register_module(name="CheckpointHook", force=True)
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, with a complete checkpoint to resume from at every moment.

    Replaces MMEngine's own under its name, so that every config that imports this package uses it. MMEngine (up to
    0.10.7) writes to the final file directly, removes an older checkpoint before that, and resumes from whatever
    ``last_checkpoint`` names. Here files on a local disk are written atomically, an outdated checkpoint is removed
    once its successor is written, and ``--resume`` takes the newest complete checkpoint. Other storage
    (``backend_args``) works as in MMEngine.

    Raises:
        OSError: A checkpoint cannot be written; the message says how large it is and how much space is free.
        ValueError: With ``--resume``, there are checkpoints, but none of them is complete.
    """

    backend_args: dict[str, Any] | None

    def before_run(self, runner: Runner) -> None:
        if runner._resume and runner._load_from is None:
            runner._load_from = self._instead_of_the_last(runner)

    def before_train(self, runner: Runner) -> None:
        local = self.backend_args is None and self.file_client_args is None and "://" not in str(self.out_dir)
        if local:
            self.backend_args = dict(backend=_ATOMIC_BACKEND)
        super().before_train(runner)
        if local and is_main_process():
            remove_unfinished(self.out_dir)

    def _instead_of_the_last(self, runner: Runner) -> str | None:
        """The newest complete checkpoint, if the one that MMEngine would resume from is missing or truncated."""
        record = Path(runner.work_dir) / "last_checkpoint"
        last = record.read_text().strip() if record.is_file() else ""
        if last and ("://" in last or Path(last).is_dir() or _is_complete(Path(last))):
            return None
        folder = Path(runner.work_dir if self.out_dir is None else Path(self.out_dir, Path(runner.work_dir).name))
        found = sorted(folder.glob(self.filename_tmpl.replace("{}", "*")), key=lambda path: path.stat().st_mtime)
        complete = [path for path in found if _is_complete(path)]
        if complete:
            runner.logger.warning(f"{last or record} is missing or truncated: resuming from {complete[-1]}")
            return str(complete[-1])
        if last or found:
            raise ValueError(
                f"--resume: none of the checkpoints in {folder} is complete ({last or found[-1]} was the last): remove "
                f"them and {record} to start from the beginning, or name another checkpoint after --resume"
            )
        return None

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Delay the removal of old checkpoints until the new one has been written."""
        backend = self.file_backend
        removals = dict(remove=backend.remove, rmtree=backend.rmtree)  # of files, of folders (FSDP's)
        waiting: list[Callable[[], None]] = []
        for name, removal in removals.items():
            setattr(backend, name, lambda path, removal=removal: waiting.append(lambda: removal(path)))
        try:
            yield
        finally:
            for name, removal in removals.items():
                setattr(backend, name, removal)
        for removal in waiting:
            removal()


def _is_complete(path: Path) -> bool:
    """Whether the archive has its end, which holds its table of contents, and a checkpoint in it."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())
