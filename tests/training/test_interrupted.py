"""Trainings on real images are stopped many times, by SIGTERM and SIGKILL by turns, and resumed.

INTERRUPTIONS is the number of stops per runner, 50 by default.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from detectors import user_config
from places import REPOSITORY
from training_logs import last_step, losses

from sa_mmdet.atomic_write import unfinished_files
from sa_mmdet.untrusted import read_torch

STOPS = int(os.environ.get("INTERRUPTIONS", "50"))
EPOCHS = 24
TERMINATED = 128 + signal.SIGTERM
SETTINGS = f"""
custom_hooks = [dict(type="SeedSteps")]
train_pipeline = [*pipeline[:3], dict(type="RandomFlip", prob=0.5), pipeline[3]]
train_dataloader.update(num_workers=1, persistent_workers=True, dataset=dict(dataset, pipeline=train_pipeline))
train_cfg = dict(max_epochs={EPOCHS}, val_interval=4)
optim_wrapper.update(accumulative_counts=3)
default_hooks.update(checkpoint=dict(interval=1, max_keep_ckpts=1, save_best="auto"))
"""
FLEXIBLE = """
runner_type = "FlexibleRunner"
"""


def command(config: Path, work_dir: Path) -> list[str]:
    return [sys.executable, str(REPOSITORY / "tools/train.py"), str(config), "--work-dir", str(work_dir), "--resume"]


def writing(work_dir: Path) -> bool:
    return bool(unfinished_files(work_dir, ".pth"))


def newest(work_dir: Path) -> int:
    """The iterations of the checkpoint that has seen the most; 0 without one."""
    paths = [path for path in work_dir.glob("*.pth") if not path.name.startswith("best_")]
    return max((read_torch(path)["meta"]["iter"] for path in paths), default=0)


def stop_once(config: Path, work_dir: Path, by: signal.Signals, rng: random.Random, log: Path) -> str | None:
    """Start or resume the training and stop it. Returns what it was doing, or None if it had ended before."""
    for path in unfinished_files(work_dir, ".pth"):
        shutil.rmtree(path.parent)  # left by the last kill; only what this process writes is watched for
    begun = len(list(work_dir.glob("*/vis_data/scalars.json")))
    in_write = by == signal.SIGKILL and rng.random() < 0.5
    with log.open("a") as output:
        process = subprocess.Popen(command(config, work_dir), stdout=output, stderr=output, start_new_session=True)
    while process.poll() is None and len(list(work_dir.glob("*/vis_data/scalars.json"))) == begun:
        time.sleep(0.05)
    deadline = time.monotonic() + rng.uniform(0, 12)
    while process.poll() is None and not (writing(work_dir) if in_write else time.monotonic() > deadline):
        time.sleep(0.0005)
    if process.poll() is not None:
        assert process.returncode == 0, log.read_text()[-3000:]
        return None
    time.sleep(rng.uniform(0, 0.02) if in_write else 0)
    os.killpg(process.pid, by)  # with the data loader's workers, as launchers do
    status = process.wait()
    if by == signal.SIGTERM:
        assert status in (TERMINATED, 0), log.read_text()[-3000:]
        return None if status == 0 else "SIGTERM"
    return "writing" if writing(work_dir) else "between"


@pytest.mark.long
@pytest.mark.parametrize("runner", ["Runner", "FlexibleRunner"])
def test_stops(coco128: Path, tmp_path: Path, runner: str) -> None:
    settings = SETTINGS + (FLEXIBLE if runner == "FlexibleRunner" else "")
    config = user_config(coco128, tmp_path / "mine.py", settings)
    subprocess.run(command(config, tmp_path / "whole"), check=True, capture_output=True)
    undisturbed = losses(tmp_path / "whole")
    assert len(undisturbed) == EPOCHS * 8
    rng, runs = random.Random(0), 0
    seen: list[str] = []
    work_dir = tmp_path / "run0"
    while len(seen) < STOPS:
        by = (signal.SIGTERM, signal.SIGKILL)[len(seen) % 2]
        before = newest(work_dir)
        doing = stop_once(config, work_dir, by, rng, tmp_path / "log")
        if doing is None:  # it has ended: start another run
            assert losses(work_dir) == undisturbed
            runs += 1
            work_dir = tmp_path / f"run{runs}"
            continue
        seen.append(doing)
        saved = list(work_dir.glob("*.pth"))
        record = work_dir / "last_checkpoint"
        if record.is_file():
            assert Path(record.read_text()) in saved
        # Nothing that was saved is lost, and no step where SIGTERM came; a kill loses the steps since the last save.
        assert newest(work_dir) >= max(before, last_step(work_dir) if doing == "SIGTERM" else 0)
    subprocess.run(command(config, work_dir), check=True, capture_output=True)
    # What was computed twice gave the same: one loss per iteration, that of the undisturbed run.
    assert losses(work_dir) == undisturbed
    print(
        f"{runner}: {len(seen)} stops, {seen.count('SIGTERM')} of them by SIGTERM, "
        f"{seen.count('writing')} while a checkpoint was written, {runs + 1} runs"
    )
