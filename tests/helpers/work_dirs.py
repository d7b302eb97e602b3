"""Work directories of trainings that never were, as MMEngine and run_comparison write them."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from made_up_coco import detections
from mmengine.config import Config
from places import CONFIGS

LOG = """2026/01/02 03:04:05 - mmengine - INFO -
System environment:
    Python: 3.11.7 (main)
    PyTorch: 2.13.0+cpu
    MMEngine: 0.10.7
Runtime environment:
    seed: {seed}
"""


def write_data(root: Path, truth: dict[str, Any], name: str = "instances_val2017") -> Path:
    """Write images of noise to val2017/, and their annotations; the result is the file of annotations."""
    (root / "val2017").mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    for image in truth["images"]:
        cv2.imwrite(str(root / "val2017" / image["file_name"]), pixels)
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"{name}.json"
    path.write_text(json.dumps(truth))
    return path


@functools.cache
def _config(path: str) -> Config:
    return Config.fromfile(CONFIGS / path)


def write_run(
    folder: Path,
    annotations: Path,
    config: str = "demo/faster-rcnn_r18_fpn_bccd.py",
    seed: int = 7,
    noise: float | None = 0.1,
    tasks: Sequence[str] = ("bbox",),
    starts: Sequence[Sequence[int]] = ((1, 2),),
    broken: str = "",
    **changes: Any,
) -> Path:
    """Write the work directory of a training, which was tested on these annotations.

    Args:
        folder: The work directory.
        annotations: What :func:`write_data` returns.
        config: The config, in configs/.
        seed: The seed, also of the detections.
        noise: How far the boxes are off, as a share of their sizes; None for a run without results.
        tasks: The tasks that it has results for.
        starts: The epochs of each start.
        broken: A line at the end of each log.
        changes: Settings of the config, whose keys have '__' for the dots.
    """
    cfg = Config(_config(config).to_dict())
    places = {
        "test_evaluator.ann_file": str(annotations),
        "test_dataloader.dataset.data_root": str(annotations.parents[1]),
        "test_dataloader.dataset.data_prefix": dict(img="val2017"),
    }
    cfg.merge_from_dict(places | {key.replace("__", "."): value for key, value in changes.items()})
    # What MMEngine's dump() writes, but for the layout, which takes it most of a second.
    text = "".join(f"{key} = {value!r}\n" for key, value in cfg.to_dict().items())
    for number, epochs in enumerate(starts, 1):
        time = f"2026010{number}_000000"
        (folder / time / "vis_data").mkdir(parents=True)
        (folder / time / "vis_data" / "config.py").write_text(text)
        (folder / time / f"{time}.log").write_text(LOG.format(seed=seed))
        lines: list[dict[str, Any]] = []
        for epoch in epochs:
            lines.append(dict(loss=2 / epoch, step=10 * epoch, epoch=epoch))
            values = {f"coco/{task}_mAP": 0.1 * epoch for task in tasks}
            lines.append({**values, "coco/bbox_mAP_50": 0.5, "step": epoch})
        log = "\n".join(json.dumps(line) for line in lines)
        (folder / time / "vis_data" / "scalars.json").write_text(f"{log}\n{broken}")
    if noise is not None:
        found = detections(json.loads(annotations.read_text()), noise, seed=seed)
        for task in tasks:
            dropped = "segmentation" if task == "bbox" else "bbox"
            own = [{key: value for key, value in entry.items() if key != dropped} for entry in found]
            (folder / f"results.{task}.json").write_text(json.dumps(own))
    return folder


def rewrite(folder: Path, old: str, new: str) -> None:
    """Put other text into all configs that a work directory recorded."""
    for path in folder.glob("**/config.py"):
        path.write_text(path.read_text().replace(old, new))
