"""A check of the data before the first step, instead of an error after an hour."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from sa_mmdet.coco_format import read_annotations
from sa_mmdet.messages import listed
from sa_mmdet.registry import register

_SHOWN = 3  # files that an error names


@register(HOOKS)
class CheckDataset(Hook):
    """Check that every image of the data sets exists and that their annotations are valid.

    Looks at folder listings, file sizes and annotations in COCO's format, not into the images.

    Raises:
        FileNotFoundError: Images are missing or empty.
        ValueError: No category has the name of one of the data set's classes, an id is used twice, or a size, box or
            file name is invalid.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                check_dataset(loop.dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        check_dataset(runner.test_loop.dataloader.dataset)


def check_dataset(dataset: Any) -> None:
    """Check a data set as :class:`CheckDataset` does.

    Args:
        dataset: A data set of MMDetection or MMEngine, or a wrapper around others.

    Raises:
        FileNotFoundError: Images are missing or empty.
        ValueError: The annotations are invalid, or none of their categories is one of the classes.
    """
    for part in _parts(dataset):
        if hasattr(part, "cat_ids") and not part.cat_ids:
            raise ValueError(
                f"{part.ann_file}: no category has the name of one of the classes {part.metainfo['classes']}: set "
                "dataset.metainfo=dict(classes=(...)) to the names that the annotations use"
            )
        # Only COCO's own format, not LVIS's or panoptic ones; in one process per machine, since it takes seconds.
        in_coco_format = getattr(part, "COCOAPI", None) is CocoDataset.COCOAPI
        if in_coco_format and "://" not in part.ann_file and os.environ.get("LOCAL_RANK", "0") == "0":
            _check_annotations(part)
        paths = [info["img_path"] for i in range(len(part)) if "img_path" in (info := part.get_data_info(i))]
        unusable = _missing_or_empty([path for path in paths if "://" not in path])
        if unusable:
            raise FileNotFoundError(
                f"{getattr(part, 'ann_file', type(part).__name__)}: {len(unusable)} of its {len(paths)} images are "
                f"missing or empty, such as {listed(unusable, _SHOWN)}: check data_root and data_prefix"
            )


def _check_annotations(part: CocoDataset) -> None:
    content = read_annotations(part.ann_file, part.data_prefix.get("img") or "", part.data_root or "")
    categories = {category["id"] for category in content["categories"]}
    unknown = sum(entry["category_id"] not in categories for entry in content["annotations"])
    if unknown:
        print_log(
            f"{part.ann_file}: {unknown} objects have categories that the file does not list: they are background",
            logger="current",
            level=logging.WARNING,
        )


def _parts(dataset: Any) -> Iterator[Any]:
    """The plain data sets inside MMEngine's wrappers."""
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from _parts(inner)
    elif hasattr(dataset, "dataset"):
        yield from _parts(dataset.dataset)
    elif hasattr(dataset, "get_data_info"):
        yield dataset


def _missing_or_empty(paths: list[str]) -> list[str]:
    folders = defaultdict(list)
    for path in paths:
        folders[os.path.dirname(path)].append(path)
    unusable = []
    for folder, members in folders.items():
        try:
            with os.scandir(folder or ".") as entries:
                usable = {entry.name for entry in entries if entry.is_file() and entry.stat().st_size}
        except (FileNotFoundError, NotADirectoryError):
            usable = set()
        unusable += [path for path in members if os.path.basename(path) not in usable]
    return unusable
