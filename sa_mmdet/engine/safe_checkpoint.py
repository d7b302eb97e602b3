"""Checkpoints that a kill or a full disk cannot spoil."""

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

from sa_mmdet.atomic_write import leftovers, written_aside

_WHOLE_FILES = "sa_mmdet.whole_files"
_MIB = 2**20


class _WholeFiles(LocalBackend):
    """The local file system, on which a file is whole or not there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with written_aside(path) as aside:
                aside.write_bytes(obj)
        except OSError as error:
            free = shutil.disk_usage(path.parent).free // _MIB
            raise OSError(
                error.errno,
                f"{error.strerror}: {path} ({len(obj) // _MIB} MiB) was not written, {free} MiB are free there. What "
                "was saved before is whole: make room, or keep fewer checkpoints "
                "(default_hooks.checkpoint.max_keep_ckpts), and go on with --resume",
            ) from error


register_backend(_WHOLE_FILES, _WholeFiles, force=True)


@HOOKS.register_module(name="CheckpointHook", force=True)
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, after which there is a whole checkpoint to resume from at every moment.

    Stands under the name of MMEngine's own, so that every config has it which imports this package. MMEngine (up to
    0.10.7) writes into the file of the final name, removes the checkpoint before last ahead of that and resumes from
    whatever ``last_checkpoint`` names. Here files on a local disk are written aside and renamed, what is outdated goes
    once its successor is there, and ``--resume`` takes the newest checkpoint that is whole. Other storage
    (``backend_args``) is as in MMEngine.

    Raises:
        OSError: A checkpoint cannot be written; says how large it is, and how much room there is.
        ValueError: ``--resume``, and there are checkpoints, but not one that is whole.
    """

    backend_args: dict[str, Any] | None

    def before_run(self, runner: Runner) -> None:
        if runner._resume and runner._load_from is None:
            runner._load_from = self._instead_of_the_last(runner)

    def before_train(self, runner: Runner) -> None:
        local = self.backend_args is None and self.file_client_args is None and "://" not in str(self.out_dir)
        if local:
            self.backend_args = dict(backend=_WHOLE_FILES)
        super().before_train(runner)
        if local and is_main_process():
            for path in leftovers(self.out_dir, ".pth"):
                path.unlink()

    def _instead_of_the_last(self, runner: Runner) -> str | None:
        """The newest whole checkpoint, if that which MMEngine would resume from is missing or cut off."""
        record = Path(runner.work_dir) / "last_checkpoint"
        last = record.read_text().strip() if record.is_file() else ""
        if last and ("://" in last or Path(last).is_dir() or _is_whole(Path(last))):
            return None
        folder = Path(runner.work_dir if self.out_dir is None else Path(self.out_dir, Path(runner.work_dir).name))
        found = sorted(folder.glob(self.filename_tmpl.replace("{}", "*")), key=lambda path: path.stat().st_mtime)
        whole = [path for path in found if _is_whole(path)]
        if whole:
            runner.logger.warning(f"{last or record} is missing or cut off: resuming from {whole[-1]}")
            return str(whole[-1])
        if last or found:
            raise ValueError(
                f"--resume: none of the checkpoints in {folder} is whole ({last or found[-1]} was the last): remove "
                f"them and {record} to start anew, or name another checkpoint after --resume"
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
        """Hold removals back until what is done within has succeeded."""
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


def _is_whole(path: Path) -> bool:
    """Whether the archive has its end, where its table of contents stands."""
    return path.is_file() and zipfile.is_zipfile(path)
