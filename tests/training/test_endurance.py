"""Long runs on real images: the memory in use does not grow, and the same seed gives the same losses."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import detectors
import pytest
import torch
from places import REPOSITORY
from training_logs import losses

ONE_EPOCH = """
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=1)
val_cfg = val_dataloader = val_evaluator = None
"""
# Both programs print the memory of their process, in KiB, after each step.
MEMORY = """
import pathlib, re
def kib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1))
"""
INFERENCE = (
    MEMORY
    + """
import sys
import sa_mmdet
from mmdet.apis import inference_detector, init_detector
config, *images = sys.argv[1:]
model = init_detector(config, None, device="cpu")
for image in images:
    inference_detector(model, image)
    print("KiB", kib())
"""
)
TRAINING = """
custom_imports = dict(imports=["sa_mmdet", "memory"])
custom_hooks = [dict(type="SeedSteps"), dict(type="Memory")]
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=250)
val_cfg = val_dataloader = val_evaluator = None
train_dataloader.update(dataset=dict(dataset, pipeline=[*pipeline[:2], dict(pipeline[2], scale=(64, 64)), pipeline[3]]))
default_hooks.update(checkpoint=dict(interval=50, max_keep_ckpts=1), logger=dict(interval=50))
"""
HOOK = (
    MEMORY
    + """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
@HOOKS.register_module()
class Memory(Hook):
    def after_train_iter(self, runner, *arguments, **options):
        print("KiB", kib())
"""
)


def memory(command: list[str], folder: Path) -> list[int]:
    # Freed memory goes back to the system at once, so that only memory in use is counted.
    malloc = dict(MALLOC_ARENA_MAX="1", MALLOC_MMAP_THRESHOLD_="65536")
    environment = os.environ | malloc | dict(PYTHONPATH=str(folder))
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("KiB ")]


def growth(samples: list[int], first: int) -> float:
    """The growth from the fifty samples from ``first`` on to the last fiftieth of all samples."""
    begin, end = max(samples[first : first + 50]), max(samples[-len(samples) // 50 :])
    print(f"{begin / 1024:.0f} MiB after {first}, {end / 1024:.0f} MiB after {len(samples)}: {end / begin - 1:+.2%}")
    return end / begin - 1


@pytest.mark.long
def test_a_thousand_images(coco128: Path, tmp_path: Path) -> None:
    config = detectors.user_config(coco128, tmp_path / "mine.py")
    images = itertools.islice(itertools.cycle(sorted((coco128 / "train2017").glob("*.jpg"))), 1000)
    samples = memory([sys.executable, "-c", INFERENCE, str(config), *map(str, images)], tmp_path)
    assert len(samples) == 1000
    assert growth(samples, 50) <= 0.02


@pytest.mark.long
def test_two_thousand_steps(coco128: Path, tmp_path: Path) -> None:
    (tmp_path / "memory.py").write_text(HOOK)
    config = detectors.user_config(coco128, tmp_path / "mine.py", TRAINING)
    samples = memory([sys.executable, str(REPOSITORY / "tools/train.py"), str(config), "--work-dir", "run"], tmp_path)
    assert len(samples) == 2000
    assert growth(samples, 50) <= 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; for CPUs see test_training.py")
def test_the_same_seed_gives_the_same_losses_on_a_gpu(coco128: Path, tmp_path: Path) -> None:
    config = detectors.user_config(coco128, tmp_path / "mine.py", ONE_EPOCH)
    for name in ("one", "two"):
        command = [sys.executable, str(REPOSITORY / "tools/train.py"), str(config), "--work-dir", name]
        command += ["--cfg-options", "randomness.deterministic=True"]
        environment = os.environ | dict(CUBLAS_WORKSPACE_CONFIG=":4096:8")
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    assert len(losses(tmp_path / "one")) == 8
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
