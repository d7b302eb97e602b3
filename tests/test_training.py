"""A config of a user's own, outside the repository, on real images: trained, stopped, resumed, evaluated."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY

USER_CONFIG = """
_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
custom_imports = dict(imports=["sa_mmdet"])
model = dict(
    backbone=dict(type="SAResNet", depth=18, groups=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes=1),
    test_cfg=dict(score_thr=0.0),
)
root = "{root}/"
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(160, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
dataset = dict(
    data_root=root,
    metainfo=dict(classes=("person",)),
    ann_file="annotations/instances_train2017.json",
    data_prefix=dict(img="train2017/"),
    pipeline=pipeline,
)
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=root + "annotations/instances_train2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=2, val_interval=2)
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=5e-4))
param_scheduler = [dict(type="MultiStepLR", milestones=[1])]
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
"""


def tool(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]


def run(command: list[str], cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def scalars(work_dir: Path) -> list[dict]:
    """All that the runs in a work dir logged, in order."""
    paths = sorted(work_dir.glob("*/vis_data/scalars.json"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def user_config(coco128: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(USER_CONFIG.replace("{root}", str(coco128)))
    return path


def test_a_run_that_was_killed_resumes_and_its_checkpoint_gives_its_figures(user_config: Path) -> None:
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

    # The optimizer's state and the schedule came back: the second epoch's losses are those of an undisturbed run.
    losses = [[line["loss"] for line in scalars(folder / name) if "loss" in line] for name in ("whole", "killed")]
    steps = len(losses[0]) // 2
    assert losses[1][-steps:] == losses[0][-steps:]

    expected, actual = scalars(folder / "whole")[-1], scalars(folder / "killed")[-1]
    assert expected["coco/bbox_mAP_50"] > 0
    metrics = [key for key in expected if key.startswith("coco/bbox_mAP")]
    assert len(metrics) == 6
    assert {key: actual[key] for key in metrics} == {key: expected[key] for key in metrics}

    tested = run(tool("test.py", user_config, "killed/epoch_2.pth", "--work-dir", "tested"), folder)
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in tested
    [path] = (folder / "tested").glob("*/*.json")
    figures = json.loads(path.read_text())
    assert {key: figures[key] for key in metrics} == {key: actual[key] for key in metrics}


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


def test_inference_on_one_picture(user_config: Path, coco128: Path) -> None:
    code = f"""
import sa_mmdet
from mmdet.apis import DetInferencer
inferencer = DetInferencer(model={str(user_config)!r}, weights="killed/epoch_2.pth", device="cpu")
result = inferencer({str(coco128 / "train2017" / "000000000009.jpg")!r}, out_dir="out")
print(sorted(result["predictions"][0]))
"""
    assert "['bboxes', 'labels', 'scores']" in run([sys.executable, "-c", code], user_config.parent)
    assert (user_config.parent / "out" / "vis" / "000000000009.jpg").stat().st_size
