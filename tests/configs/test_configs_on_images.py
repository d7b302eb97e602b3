"""Every COCO config runs a training step and a forward pass on real images of reduced size."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from config_files import COCO, make_tables
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from sa_mmdet.attention import Attention

# Fewer regions of interest, which take most of the time: the images are small.
FEWER: dict[str, Any] = {
    "train_cfg": dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=32))),
    "test_cfg": dict(rpn=dict(max_per_img=50)),
}


def _merge(target: Any, changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(target[key], value)
        else:
            assert key in target
            target[key] = value


def batch(root: Path, with_mask: bool) -> Any:
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=with_mask),
        dict(type="Resize", scale=(128, 96), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ]
    dataset = DATASETS.build(
        dict(
            type="CocoDataset",
            data_root=str(root),
            ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"),
            filter_cfg=dict(filter_empty_gt=True),
            pipeline=pipeline,
        )
    )
    return pseudo_collate([dataset[0], dataset[1]])


def test_there_is_a_short_config_for_every_detector_attention_and_depth() -> None:
    variants = [variant and f"{variant}-" for variant in make_tables.METHOD]
    detectors = {"faster_rcnn": "faster-rcnn", "mask_rcnn": "mask-rcnn", "retinanet": "retinanet"}
    wanted = {
        f"{folder}/{stem}_{variant}r{depth}_fpn_1x_coco.py"
        for folder, stem in detectors.items()
        for variant in variants
        for depth in (50, 101)
    }
    assert {f"{path.parent.name}/{path.name}" for path in COCO} == wanted
    # A config only names its bases and takes its backbone from one of them.
    assert all(len(path.read_text().splitlines()) <= 10 for path in COCO)


def _long(path: Path) -> bool:
    """Whether a config is like others that are tested here: in another detector, or with more of the same blocks."""
    others = "_eca-" in path.stem or "_sge-" in path.stem or "_se-" in path.stem
    return "r101" in path.stem or others or (path.parent.name != "mask_rcnn" and "_sa-" not in path.stem)


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[pytest.mark.long] * _long(path), id=path.stem) for path in COCO]
)
def test_a_training_step_and_a_forward_pass(path: Path, coco128: Path) -> None:
    cfg = Config.fromfile(path)
    for name, changes in FEWER.items():
        if "roi_head" in cfg.model:
            _merge(cfg.model[name], changes)
    init_default_scope("mmdet")  # as a runner does
    model = MODELS.build(cfg.model)
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    data = batch(coco128, with_mask="mask" in path.stem)
    losses = model.train_step(data, optimizer)
    assert all(loss.isfinite().all() for loss in losses.values())
    trained = [
        parameter
        for module in model.backbone.modules()
        if isinstance(module, Attention)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    assert bool(trained) == bool(re.search("_[a-z]+-r", path.stem))
    assert all(parameter.isfinite().all() for parameter in trained)
    model.eval()
    with torch.no_grad():
        results = model.test_step(data)
    assert len(results) == 2
    assert all(result.pred_instances.scores.isfinite().all() for result in results)
