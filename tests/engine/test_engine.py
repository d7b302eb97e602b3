"""The hooks, in trainings of a toy network."""

import os
import random
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from sa_mmdet.atomic_write import temporary_beside, unfinished_files
from sa_mmdet.engine import SafeCheckpointHook


class Noise(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        legacy = np.random.random_sample()  # noqa: NPY002  (transforms draw from it)
        return dict(inputs=torch.tensor([legacy, random.random(), torch.rand(1).item()]))


class Toy(BaseModel):
    def __init__(self, size: int = 1):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("ballast", torch.zeros(size))

    def forward(self, inputs: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=self.linear(inputs + torch.rand(3)).square().mean())


class Recorder(Hook):
    """Keeps the losses, and ends the run in an epoch if told to."""

    def __init__(self, stop: int | None = None):
        self.losses: list[float] = []
        self.stop = stop

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if runner.epoch == self.stop and batch_idx:
            raise KeyboardInterrupt
        assert outputs is not None
        self.losses.append(outputs["loss"].item())


names = iter(range(1000))


def trained(
    work_dir: Path,
    epochs: int = 3,
    resume: bool = False,
    stop: int | None = None,
    size: int = 1,
    workers: int = 0,
    seeded: bool = True,
    **checkpoint: Any,
) -> list[float]:
    torch.manual_seed(0)  # of the first weights
    recorder = Recorder(stop)
    runner = Runner(
        Toy(size),
        str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=workers,
            persistent_workers=workers > 0,
            dataset=Noise(),
            collate_fn=dict(type="default_collate"),
            sampler=dict(type="DefaultSampler", shuffle=True),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1, **checkpoint)),
        custom_hooks=[recorder, *([dict(type="SeedEpochs")] if seeded else [])],
        randomness=dict(seed=3),
        resume=resume,
        default_scope="mmdet",  # stays when the run has ended
        experiment_name=f"toy{next(names)}",
        log_level="WARNING",
    )
    try:
        runner.train()
    except KeyboardInterrupt:
        assert stop is not None
    runner.train_dataloader._iterator = None  # its workers end now, not when the collector comes by
    return recorder.losses


def test_it_stands_for_mmengines_own() -> None:
    assert HOOKS.get("CheckpointHook") is SafeCheckpointHook
    assert HOOKS.get("mmengine.CheckpointHook") is SafeCheckpointHook


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
    trained(tmp_path, epochs=1, size=500_000, max_keep_ckpts=1)
    before = (tmp_path / "epoch_1.pth").read_bytes()
    with (
        files_up_to(1_000_000),
        pytest.raises(OSError, match=r"epoch_2.pth \(1 MiB\) was not written, \d+ MiB are free.*--resume"),
    ):
        trained(tmp_path, epochs=2, resume=True, size=500_000, max_keep_ckpts=1)
    assert (tmp_path / "epoch_1.pth").read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_1.pth"]
    assert not list(tmp_path.glob(".*.pth"))
    assert len(trained(tmp_path, epochs=2, resume=True, size=500_000, max_keep_ckpts=1)) == 2
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_2.pth"]


def test_what_is_outdated_goes_after_its_successor_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    save = Runner.save_checkpoint

    def watched(runner: Runner, *arguments: Any, **options: Any) -> None:
        save(runner, *arguments, **options)
        seen.append(sorted(path.name for path in tmp_path.glob("*.pth")))

    monkeypatch.setattr(Runner, "save_checkpoint", watched)
    trained(tmp_path, max_keep_ckpts=1)
    assert seen == [["epoch_1.pth"], ["epoch_1.pth", "epoch_2.pth"], ["epoch_2.pth", "epoch_3.pth"]]
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_3.pth"]


@pytest.mark.parametrize("damage", ["cut off", "gone", "an empty archive", "record empty", "record gone"])
def test_it_resumes_from_the_newest_that_is_whole(tmp_path: Path, damage: str) -> None:
    whole = trained(tmp_path / "whole")
    trained(tmp_path / "run", epochs=2)
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
    losses = trained(tmp_path / "run", resume=True)
    assert losses == (whole[4:] if damage.startswith("record") else whole[2:])


def test_no_whole_checkpoint_is_an_error_and_none_at_all_a_start(tmp_path: Path) -> None:
    assert len(trained(tmp_path, epochs=1, resume=True)) == 2
    (tmp_path / "epoch_1.pth").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"--resume: none of the checkpoints in .* is complete .*epoch_1.pth was"):
        trained(tmp_path, resume=True)


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
        trained(tmp_path, epochs=1)
        assert writing.exists()
    assert not left.parent.exists()
    assert all(path.exists() for path in users)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_draws_what_the_undisturbed_one_drew(tmp_path: Path, workers: int) -> None:
    whole = trained(tmp_path / "whole", workers=workers)
    assert trained(tmp_path / "again", workers=workers) == whole
    assert len(set(whole)) == 6  # no epoch repeats another's numbers
    assert trained(tmp_path / "run", workers=workers, stop=1) == whole[:3]
    assert trained(tmp_path / "run", workers=workers, resume=True) == whole[2:]
    # Without the hook that is not so, else this test says nothing.
    trained(tmp_path / "plain", stop=1, workers=workers, seeded=False)
    unseeded = trained(tmp_path / "plain whole", workers=workers, seeded=False)
    assert trained(tmp_path / "plain", resume=True, workers=workers, seeded=False) != unseeded[2:]
