"""Work directories of classifiers that never were trained, as MMPretrain writes them; it need not be installed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_up_predictions import DATA, as_pickle
from mmengine.config import Config
from work_dirs import LOG

NONE: dict[str, Any] = dict(type="mmdet.ResNet", depth=50)
SE: dict[str, Any] = dict(type="mmdet.AttentionResNet", depth=50, attention=dict(type="SqueezeExcitation"))
SA: dict[str, Any] = dict(type="mmdet.SAResNet", depth=50)


def _config(backbone: dict[str, Any]) -> dict[str, Any]:
    """What MMPretrain records of one of configs/imagenet, as far as it matters here."""
    load, pack = dict(type="LoadImageFromFile"), dict(type="PackInputs")
    crop, flip = dict(type="RandomResizedCrop", scale=224), dict(type="RandomFlip", prob=0.5)
    resize, centre = dict(type="ResizeEdge", scale=256, edge="short"), dict(type="CenterCrop", crop_size=224)
    train: list[dict[str, Any]] = [load, crop, flip, pack]
    test: list[dict[str, Any]] = [load, resize, centre, pack]

    def loader(part: str, pipeline: list[dict[str, Any]]) -> dict[str, Any]:
        dataset = dict(type="ImageNet", data_root="data/imagenet", split=part, pipeline=pipeline)
        return dict(batch_size=32, num_workers=5, dataset=dataset)

    return dict(
        custom_imports=dict(imports=["sa_mmdet"]),
        default_scope="mmpretrain",
        model=dict(
            type="ImageClassifier",
            backbone=dict(backbone, out_indices=(3,), norm_eval=False, frozen_stages=-1),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(
                type="LinearClsHead",
                num_classes=1000,
                in_channels=2048,
                loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
                topk=(1, 5),
            ),
        ),
        data_preprocessor=dict(num_classes=1000, mean=[123.675, 116.28, 103.53], to_rgb=True),
        train_dataloader=loader("train", train),
        val_dataloader=loader("val", test),
        test_dataloader=loader("val", test),
        val_evaluator=dict(type="Accuracy", topk=(1, 5)),
        test_evaluator=dict(type="Accuracy", topk=(1, 5)),
        train_cfg=dict(by_epoch=True, max_epochs=100, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=0.0001)),
    )


def write_classifier(
    folder: Path,
    backbone: dict[str, Any],
    seed: int = 0,
    strength: float | None = 1.0,
    write: Callable[[Path, np.ndarray], Path] = as_pickle,
    accuracy: Sequence[dict[str, float]] = ({"accuracy/top1": 40.0, "accuracy/top5": 70.0},),
    **changes: Any,
) -> Path:
    """Write the work directory of a training.

    Args:
        folder: The work directory.
        backbone: Its backbone's config.
        seed: The seed, also of the predictions.
        strength: How far the right class's score is above the others; None for a run without predictions.
        write: Writes them in one of their forms.
        accuracy: The metrics of each epoch, in percent.
        changes: Settings of the config, whose keys have '__' for the dots.
    """
    cfg = Config(_config(backbone))
    cfg.merge_from_dict({key.replace("__", "."): value for key, value in changes.items()})
    start = folder / "20260101_000000"
    (start / "vis_data").mkdir(parents=True)
    text = "".join(f"{key} = {value!r}\n" for key, value in cfg.to_dict().items())
    (start / "vis_data" / "config.py").write_text(text)
    (start / f"{start.name}.log").write_text(LOG.format(seed=seed))
    lines: list[dict[str, Any]] = []
    for epoch, metrics in enumerate(accuracy, 1):
        lines.append(dict(lr=0.1, data_time=0.1, loss=7 / epoch, time=0.5, epoch=epoch, step=100 * epoch))
        lines.append({**metrics, "data_time": 0.1, "time": 0.2, "step": epoch})
    (start / "vis_data" / "scalars.json").write_text("\n".join(map(json.dumps, lines)))
    if strength is not None:
        write(folder / "results", DATA.scores(strength, seed))
    return folder
