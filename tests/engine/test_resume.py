"""Stopping and going on: the losses of an undisturbed run, from every kind of checkpoint, with both runners."""

import os
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import CheckpointHook
from toy_training import Recorder, runner, train

from sa_mmdet.untrusted import read_torch

RUNNERS = pytest.mark.parametrize("flexible", [False, True], ids=["Runner", "FlexibleRunner"])


class Interrupted(Exception):
    pass


def interrupt() -> None:
    raise Interrupted


def terminate() -> None:
    """SIGTERM, twice: slurm signals every process of a job, and a launcher among them passes it on."""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(work_dir: Path, at: int, **options: Any) -> Recorder:
    """Train until a step, and stop there without any preparation, as a kill does."""
    recorder = Recorder(at, interrupt)
    with pytest.raises(Interrupted):
        train(work_dir, recorder, **options)
    return recorder


def terminated(work_dir: Path, at: int, evaluating: bool = False, **options: Any) -> Recorder:
    """Train until a step, during which SIGTERM arrives."""
    recorder = Recorder(at, terminate, evaluating)
    with pytest.raises(SystemExit) as stop:
        train(work_dir, recorder, **options)
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # a later one ends the process
    return recorder


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """MMEngine pauses for two seconds when an iteration loop restarts its data loader."""
    monkeypatch.setattr("mmengine.runner.loops.time.sleep", lambda seconds: None)


@pytest.fixture
def compare(tmp_path: Path) -> Any:
    """Compare the losses of a run that was stopped in a way with those of one that was not."""

    def compared(stop: Any, at: int, **options: Any) -> tuple[Recorder, Recorder, Recorder]:
        whole = train(tmp_path / "whole", **options)
        first = stop(tmp_path / "run", at, **options)
        rest = train(tmp_path / "run", resume=True, **options)
        assert first.losses | rest.losses == whole.losses
        assert {**first.losses, **rest.losses} == {**rest.losses, **first.losses}  # where both did a step, the same
        assert rest.losses, "nothing was left to do"
        return whole, first, rest

    return compared


OPTIONS: dict[str, dict[str, Any]] = {
    "workers": dict(workers=2),
    "accumulation": dict(accumulative_counts=3),
    "by iteration": dict(interval=3, by_epoch=False),
    "iteration loop": dict(
        train_cfg=dict(by_epoch=False, max_iters=11), infinite=True, interval=3, by_epoch=False, workers=1
    ),
    "iteration loop that restarts": dict(train_cfg=dict(by_epoch=False, max_iters=7), interval=5, by_epoch=False),
}


@RUNNERS
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_killed_run_gives_the_losses_of_an_undisturbed_one(compare: Any, kind: str, flexible: bool) -> None:
    options: dict[str, Any] = dict(interval=1, flexible=flexible) | OPTIONS[kind]
    _, first, rest = compare(interrupted, 6, **options)
    assert min(rest.losses) <= max(first.losses)  # something was done again


@RUNNERS
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("at", [0, 7])
def test_sigterm_loses_no_step(compare: Any, kind: str, flexible: bool, at: int) -> None:
    options: dict[str, Any] = dict(interval=1, flexible=flexible) | OPTIONS[kind]
    if kind == "iteration loop that restarts" and at == 7:
        at = 4
    _, first, rest = compare(terminated, at, **options)
    assert max(first.losses) == at
    assert min(rest.losses) == at + 1


@RUNNERS
def test_hooks_get_the_number_in_the_epoch_after_a_stop_in_its_middle(compare: Any, flexible: bool) -> None:
    whole, first, rest = compare(terminated, 5, interval=1, flexible=flexible)
    assert first.indices + rest.indices == whole.indices == [0, 1, 2, 3] * 3


@RUNNERS
def test_an_evaluation_that_was_stopped_is_done_again(tmp_path: Path, flexible: bool) -> None:
    options: dict[str, Any] = dict(interval=1, flexible=flexible, val_interval=1, save_best="acc")
    whole = train(tmp_path / "whole", **options)
    first = terminated(tmp_path / "run", 8, evaluating=True, **options)
    rest = train(tmp_path / "run", resume=True, **options)
    assert first.losses | rest.losses == whole.losses
    assert first.evaluations + rest.evaluations == whole.evaluations == [4, 8, 12]
    assert min(rest.losses) == 8


@RUNNERS
def test_without_a_seed_the_one_that_was_drawn_is_taken_again(tmp_path: Path, flexible: bool) -> None:
    options: dict[str, Any] = dict(interval=1, seed=None, length=8, flexible=flexible)
    whole = train(tmp_path / "whole", **options)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_1.pth", tmp_path / "run" / "epoch_1.pth")
    rest = train(tmp_path / "run", resume=True, **options)
    assert min(rest.losses) == 8
    assert rest.losses.items() <= whole.losses.items()


def test_a_finished_run_has_nothing_of_a_stop(tmp_path: Path) -> None:
    terminated(tmp_path, 5, interval=1)
    assert (tmp_path / "stopped.pth").is_file()
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "stopped.pth")
    train(tmp_path, resume=True, interval=1)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth", "epoch_3.pth"]


@RUNNERS
@pytest.mark.parametrize("hook", [CheckpointHook, type("Mine", (CheckpointHook,), {})], ids=["MMEngine's", "own"])
def test_hooks_named_by_their_class_are_safe_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: type, flexible: bool
) -> None:
    options: dict[str, Any] = dict(hook=hook, flexible=flexible, interval=1, max_keep_ckpts=1)
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Any) -> Path:
        done = replace(self, target)
        seen.append(sorted(path.name for path in tmp_path.glob("*.pth")))
        return done

    monkeypatch.setattr(Path, "replace", watched)
    train(tmp_path, **options)
    assert seen == [["epoch_1.pth"], ["epoch_1.pth", "epoch_2.pth"], ["epoch_2.pth", "epoch_3.pth"]]


@RUNNERS
def test_a_name_without_a_number_keeps_its_checkpoint(tmp_path: Path, flexible: bool) -> None:
    train(tmp_path, flexible=flexible, interval=1, max_keep_ckpts=1, filename_tmpl="latest.pth")
    assert [path.name for path in tmp_path.glob("*.pth")] == ["latest.pth"]
    assert read_torch(tmp_path / "latest.pth")["meta"]["epoch"] == 3


@RUNNERS
def test_the_best_checkpoints_update_does_not_lose_an_epoch(compare: Any, flexible: bool) -> None:
    compare(interrupted, 6, flexible=flexible, interval=1, val_interval=1, save_best="acc")


@RUNNERS
def test_a_checkpoint_with_a_wrong_checksum_is_passed_over(tmp_path: Path, flexible: bool) -> None:
    options: dict[str, Any] = dict(flexible=flexible, interval=1, size=10_000)
    whole = train(tmp_path / "whole", **options)
    interrupted(tmp_path / "run", 9, **options)
    path = tmp_path / "run" / "epoch_2.pth"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    middle = largest.header_offset + largest.file_size // 2
    content[middle : middle + 8] = b"\x01" * 8
    path.write_bytes(content)
    rest = train(tmp_path / "run", resume=True, **options)
    assert min(rest.losses) == 4
    assert rest.losses.items() <= whole.losses.items()
    path.write_bytes(content)
    options["load_from"] = str(path)  # what --resume PATH sets
    with pytest.raises(ValueError, match=r"--resume: .*epoch_2.pth is damaged"):
        train(tmp_path / "run", resume=True, **options)


@RUNNERS
def test_the_newest_is_what_the_checkpoints_record(tmp_path: Path, flexible: bool) -> None:
    interrupted(tmp_path / "run", 9, interval=1, flexible=flexible)
    moved = tmp_path / "moved"
    moved.mkdir()
    for time, name in enumerate(["epoch_2.pth", "epoch_1.pth", "last_checkpoint"]):  # as a copy of a folder may be
        shutil.copy(tmp_path / "run" / name, moved / name)
        os.utime(moved / name, (time, time))
    (tmp_path / "run" / "epoch_2.pth").unlink()
    rest = train(moved, resume=True, interval=1, flexible=flexible)
    assert min(rest.losses) == 8


def test_an_out_dir_that_is_not_there_yet(tmp_path: Path) -> None:
    train(tmp_path / "run", interval=1, out_dir=str(tmp_path / "elsewhere" / "deep"))
    assert (tmp_path / "elsewhere" / "deep" / "run" / "epoch_3.pth").is_file()


def test_an_evaluation_alone_needs_no_folder(tmp_path: Path) -> None:
    recorder = Recorder()
    runner(tmp_path, recorder, interval=1, val_interval=1).val()
    assert recorder.evaluations == [0]


def test_a_changed_batch_size_begins_the_epoch_anew(tmp_path: Path) -> None:
    terminated(tmp_path, 6, interval=1)
    rest = train(tmp_path, resume=True, interval=1, length=2)
    assert min(rest.losses) == 7
    assert rest.indices[0] == 0


@RUNNERS
def test_a_schedule_that_the_config_changed_is_named(tmp_path: Path, flexible: bool) -> None:
    finished: dict[str, Any] = dict(train_cfg=dict(by_epoch=True, max_epochs=1), flexible=flexible)
    for name, end, said in (("same", 1, False), ("longer", 3, True)):
        train(tmp_path / name, schedule_end=1, **finished)
        train(tmp_path / name, schedule_end=end, flexible=flexible, resume=True, log_level="WARNING")
        logs = "".join(path.read_text() for path in (tmp_path / name).glob("**/*.log"))
        assert ("MultiStepLR: end=1 in the checkpoint, 3 in the config" in logs) is said
        assert ("the schedule is the checkpoint's" in logs) is said
