"""The paper's detectors train and test with the stand-ins as with the compiled operators."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv_without_operators import environment, needs_compiled, needs_torchvision, without_operators
from places import REPOSITORY

CONFIG = """
_base_ = "{repository}/configs/{name}"
model = dict(backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False))
if "{name}".startswith("retinanet"):
    model.update(test_cfg=dict(score_thr=0.0))
else:
    model.update(
        train_cfg=dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=32))),
        test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0)),
    )
dataset = dict(
    data_root="{root}/",
    ann_file="annotations/instances_train2017.json",
    data_prefix=dict(img="train2017/"),
    indices=8,
    pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask="{name}".startswith("mask")),
        dict(type="Resize", scale=(160, 128), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ],
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="{root}/annotations/instances_train2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
"""


def run_tool(folder: Path, name: str, *arguments: object, packages: list[Path]) -> None:
    line = [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]
    result = subprocess.run(line, cwd=folder, env=environment(*packages), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert bool(packages) == ("mmcv has no compiled operators" in result.stderr)


def logged(work_dir: Path) -> list[dict[str, float]]:
    [path] = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_torchvision
@needs_compiled
@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn/faster-rcnn_sa-r50_fpn_1x_coco.py",
        "mask_rcnn/mask-rcnn_sa-r50_fpn_1x_coco.py",
        "retinanet/retinanet_sa-r50_fpn_1x_coco.py",
    ],
)
def test_the_papers_detectors_train_and_test_as_with_compiled_operators(
    coco128: Path, tmp_path: Path, name: str
) -> None:
    config = tmp_path / "mine.py"
    config.write_text(CONFIG.format(repository=REPOSITORY, name=name, root=coco128))
    runs = {"compiled": [], "stand-ins": [without_operators(tmp_path / "packages")]}
    for work_dir, packages in runs.items():
        run_tool(tmp_path, "train.py", config, "--work-dir", work_dir, packages=packages)
    expected, actual = (logged(tmp_path / work_dir) for work_dir in runs)
    assert len(actual) == len(expected) == 5  # four steps, one validation
    for step, reference in zip(actual[:4], expected[:4], strict=True):
        losses = [key for key in reference if "loss" in key]
        assert {key: step[key] for key in losses} == pytest.approx({key: reference[key] for key in losses}, abs=1e-4)
    checkpoint = tmp_path / "stand-ins" / "epoch_1.pth"
    detections = []
    for work_dir, packages in runs.items():
        out = tmp_path / f"{work_dir}.pkl"
        run_tool(tmp_path, "test.py", config, checkpoint, "--out", out, packages=packages)
        detections.append([image["pred_instances"] for image in pickle.loads(out.read_bytes())])
    for ours, theirs in zip(*detections, strict=True):
        assert len(ours["scores"])
        assert torch.equal(ours["labels"], theirs["labels"])
        assert ours.get("masks") == theirs.get("masks")
        for key in ("bboxes", "scores"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-4)
