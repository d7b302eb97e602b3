"""A user's own config, outside the repository, on real images: train, stop, resume, evaluate."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import detectors
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from places import REPOSITORY


def tool(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]


def run(command: list[str], cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def scalars(work_dir: Path) -> list[dict]:
    """All entries that the runs in a work directory have logged, in order."""
    paths = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def user_config(coco128: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detectors.user_config(coco128, tmp_path_factory.mktemp("user") / "mine.py")


@pytest.mark.long
def test_a_run_that_was_killed_resumes_and_its_checkpoint_gives_its_metrics(user_config: Path) -> None:
    folder = user_config.parent
    whole = run(tool("train.py", user_config, "--work-dir", "whole"), folder)
    assert "Epoch(val) [2]" in whole

    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            tool("train.py", user_config, "--work-dir", "killed"), cwd=folder, stdout=log, stderr=log
        )
        while process.poll() is None and "Epoch(train) [2][2/" not in (folder / "killed.log").read_text():
            time.sleep(0.2)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "killed" / "epoch_2.pth").exists()
    resumed = run(tool("train.py", user_config, "--work-dir", "killed", "--resume"), folder)
    assert re.search(r"resumed epoch: 1, iter: \d", resumed)

    # The optimizer's state and the schedule were restored: the second epoch has the losses of an undisturbed run.
    losses = [[line["loss"] for line in scalars(folder / name) if "loss" in line] for name in ("whole", "killed")]
    steps = len(losses[0]) // 2
    assert losses[1][:steps] == losses[0][:steps]  # the same seed, the same numbers
    assert losses[1][-steps:] == losses[0][-steps:]

    expected, actual = scalars(folder / "whole")[-1], scalars(folder / "killed")[-1]
    assert expected["coco/bbox_mAP_50"] > 0
    metrics = [key for key in expected if key.startswith("coco/bbox_mAP")]
    assert len(metrics) == 6
    assert {key: actual[key] for key in metrics} == {key: expected[key] for key in metrics}

    tested = run(tool("test.py", user_config, "killed/epoch_2.pth", "--work-dir", "tested"), folder)
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in tested
    [path] = (folder / "tested").glob("*/*.json")
    reported = json.loads(path.read_text())
    assert {key: reported[key] for key in metrics} == {key: actual[key] for key in metrics}


@pytest.mark.long
def test_a_missing_image_stops_the_run_before_its_first_step(user_config: Path) -> None:
    config = user_config.with_name("missing.py")
    config.write_text(user_config.read_text() + '\ncustom_hooks = [dict(type="CheckDataset")]\n')
    options = ["--cfg-options", "train_dataloader.dataset.data_prefix.img=nowhere/"]
    result = subprocess.run(
        tool("train.py", config, "--work-dir", "missing", *options),
        cwd=user_config.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode
    assert re.search(r"FileNotFoundError: .*61 of its 61 images are missing or empty", result.stderr)
    assert "Epoch(train)" not in result.stdout + result.stderr


def test_inference_on_one_image(user_config: Path, coco128: Path) -> None:
    model = MODELS.build(Config.fromfile(user_config).model)
    meta = dict(dataset_meta=dict(classes=("person",)))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), user_config.with_name("untrained.pth"))
    code = f"""
import sa_mmdet
from mmdet.apis import DetInferencer
inferencer = DetInferencer(model={str(user_config)!r}, weights="untrained.pth", device="cpu")
result = inferencer({str(coco128 / "train2017" / "000000000009.jpg")!r}, out_dir="out")
print(sorted(result["predictions"][0]))
"""
    assert "['bboxes', 'labels', 'scores']" in run([sys.executable, "-c", code], user_config.parent)
    assert (user_config.parent / "out" / "vis" / "000000000009.jpg").stat().st_size
