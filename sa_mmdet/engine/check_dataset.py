"""A check of the data before the first step, instead of an error after an hour."""

import logging
import os
from collections import defaultdict
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from sa_mmdet.coco_format import read_annotations
from sa_mmdet.messages import listed
from sa_mmdet.registry import register

from .check_classes import annotations_of, check_classes, is_local, parts

_SHOWN = 3  # files that an error names


@register(HOOKS)
class CheckDataset(Hook):
    """Check that every image of the data sets exists and that their annotations are valid.

    Looks at folder listings, file sizes and annotations in COCO's format, not into the images; at files on the disk,
    not at those of other backends. Class names are checked in every run, with this hook or without.

    Raises:
        FileNotFoundError: Images are missing or empty.
        ValueError: A class is not in the annotations, an id is used twice, or a size or box is invalid.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        loops = (loop for loop in (runner.train_loop, runner.val_loop) if loop is not None)
        check_dataset(*(loop.dataloader.dataset for loop in loops))

    def before_test(self, runner: Runner) -> None:
        check_dataset(runner.test_loop.dataloader.dataset)


def check_dataset(*datasets: Any) -> None:
    """Check the data sets of one run as :class:`CheckDataset` does.

    Args:
        datasets: Data sets of MMDetection or MMEngine, or wrappers around others.

    Raises:
        FileNotFoundError: Images are missing or empty.
        ValueError: The annotations are invalid, or do not have the classes.
    """
    plain = [part for dataset in datasets for part in parts(dataset) if hasattr(part, "get_data_info")]
    check_classes([found for part in plain if (found := annotations_of(part)) is not None])
    for part in plain:
        if hasattr(part, "cat_ids") and not part.cat_ids:
            raise ValueError(
                f"{part.ann_file}: no category has the name of one of the classes {part.metainfo['classes']}: set "
                "dataset.metainfo=dict(classes=(...)) to the names that the annotations use"
            )
        # Only COCO's own format, not LVIS's or panoptic ones; in one process per machine, since it takes seconds.
        in_coco_format = getattr(part, "COCOAPI", None) is CocoDataset.COCOAPI
        if in_coco_format and is_local(part.backend_args, part.ann_file) and os.environ.get("LOCAL_RANK", "0") == "0":
            _check_annotations(part)
        if _reads_images_from_disk(part):
            _check_images(part)


def _check_annotations(part: CocoDataset) -> None:
    content = read_annotations(part.ann_file)
    categories = {category["id"] for category in content["categories"]}
    unknown = sum(entry["category_id"] not in categories for entry in content.get("annotations", []))
    if unknown:
        print_log(
            f"{part.ann_file}: {unknown} objects have categories that the file does not list: they are background",
            logger="current",
            level=logging.WARNING,
        )


def _reads_images_from_disk(part: Any) -> bool:
    transforms = getattr(getattr(part, "pipeline", None), "transforms", ())
    return all(is_local(getattr(reader, "backend_args", None)) for reader in (part, *transforms))


def _check_images(part: Any) -> None:
    paths = [info["img_path"] for i in range(len(part)) if "img_path" in (info := part.get_data_info(i))]
    unusable = missing_or_empty([path for path in paths if "://" not in path])
    if unusable:
        raise FileNotFoundError(
            f"{getattr(part, 'ann_file', type(part).__name__)}: {len(unusable)} of its {len(paths)} images are "
            f"missing or empty, such as {listed(unusable, _SHOWN)}: check data_root and data_prefix"
        )


def missing_or_empty(paths: list[str]) -> list[str]:
    """Those of some files that are not there or empty; each folder is listed once.

    Args:
        paths: The files.
    """
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
        except PermissionError:  # files can be read in a folder that cannot be listed
            usable = {os.path.basename(path) for path in members if os.path.isfile(path) and os.path.getsize(path)}
        unusable += [path for path in members if os.path.basename(path) not in usable]
    return unusable
