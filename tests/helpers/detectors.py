"""Detectors small enough for tests: a user's own on real images, and networks that look as if they had been trained."""

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

# A config outside of the repository, based on one of MMDetection's own; {root} is the folder of the data set.
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

# The end of a config: how the tools read an image.
TEST_PIPELINE = """
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 96), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""


def as_if_trained(model: Any) -> Any:
    """Give the norms of a network random statistics, weights and biases; returns the network."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            tensor.normal_(0.3, 0.2)
    return model


def outputs(model: Any, x: Any) -> Any:
    """What a network returns in evaluation mode."""
    model.eval()  # some backbones return nothing here
    with torch.no_grad():
        return model(x)


def user_config(coco128: Path, path: Path, more: str = "") -> Path:
    """Write the config, with further lines, to a file, and return its path."""
    path.write_text(USER_CONFIG.replace("{root}", str(coco128)) + more)
    return path


def small_retinanet(coco128: Path, folder: Path) -> Config:
    """Load the config for a runner in this process."""
    cfg = Config.fromfile(user_config(coco128, folder / "mine.py"))
    cfg.merge_from_dict(dict(work_dir=str(folder / "run"), log_level="WARNING"))
    return cfg
