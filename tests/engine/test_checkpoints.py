"""Checkpoints on a full disk and damaged checkpoints, in trainings of a toy network."""

import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from toy_training import train

from sa_mmdet.atomic_write import temporary_beside, unfinished_files


def losses_of(work_dir: Path, epochs: int = 3, **options: Any) -> list[float]:
    return list(
        train(work_dir, train_cfg=dict(by_epoch=True, max_epochs=epochs), interval=1, **options).losses.values()
    )


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As a full disk: the system refuses to write more than so many bytes into a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_gives_a_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    losses_of(tmp_path, epochs=1, size=500_000, max_keep_ckpts=1)
    before = (tmp_path / "epoch_1.pth").read_bytes()
    with (
        files_up_to(1_000_000),
        pytest.raises(OSError, match=r"epoch_2.pth \(1 MiB\) was not written, \d+ MiB are free.*--resume"),
    ):
        losses_of(tmp_path, epochs=2, resume=True, size=500_000, max_keep_ckpts=1)
    assert (tmp_path / "epoch_1.pth").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_1.pth"]
    assert not list(tmp_path.glob(".*.pth"))
    assert len(losses_of(tmp_path, epochs=2, resume=True, size=500_000, max_keep_ckpts=1)) == 4
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_2.pth"]


@pytest.mark.parametrize("damage", ["cut off", "gone", "an empty archive", "record empty", "record gone"])
def test_it_resumes_from_the_newest_that_is_whole(tmp_path: Path, damage: str) -> None:
    whole = losses_of(tmp_path / "whole")
    losses_of(tmp_path / "run", epochs=2)
    last, record = tmp_path / "run" / "epoch_2.pth", tmp_path / "run" / "last_checkpoint"
    if damage == "cut off":
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == "an empty archive":
        with zipfile.ZipFile(last, "w"):
            pass
    elif damage == "gone":
        last.unlink()
    elif damage == "record empty":
        record.write_text("")
    else:
        record.unlink()
    losses = losses_of(tmp_path / "run", resume=True)
    assert losses == (whole[8:] if damage.startswith("record") else whole[4:])


def test_no_whole_checkpoint_is_an_error_and_none_at_all_a_start(tmp_path: Path) -> None:
    assert len(losses_of(tmp_path, epochs=1, resume=True)) == 4
    (tmp_path / "epoch_1.pth").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"--resume: none of the checkpoints in .* is complete .*epoch_1.pth was"):
        losses_of(tmp_path, resume=True)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from sa_mmdet.atomic_write import temporary_beside, unfinished_files
with temporary_beside({str(tmp_path / "epoch_7.pth")!r}) as left:
    left.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    [left] = unfinished_files(tmp_path, ".pth")
    os.utime(left.parent, (0, 0))
    users = [tmp_path / ".backup.2024.pth", tmp_path / ".mine.pth"]
    for path in users:
        path.touch()
    with temporary_beside(tmp_path / "epoch_8.pth") as writing:  # as another run does
        writing.touch()
        losses_of(tmp_path, epochs=1)
        assert writing.exists()
    assert not left.parent.exists()
    assert all(path.exists() for path in users)
