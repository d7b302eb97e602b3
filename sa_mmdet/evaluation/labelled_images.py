"""Labelled images on which the accuracy of a network is measured: a folder of classes, or images with COCO's boxes."""

import contextlib
import copy
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmengine.config import Config
from numpy.typing import NDArray
from pycocotools.coco import COCO

from sa_mmdet.analysis.network import Network
from sa_mmdet.analysis.objects import Seen
from sa_mmdet.coco_format import leads_inside, load_annotations
from sa_mmdet.messages import listed, short

from .average_precision import evaluate
from .bootstrap import bootstrap
from .evaluators import annotations_of

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
Floats = NDArray[np.floating]


class LabelledImages(Protocol):
    """Labelled images.

    Attributes:
        metric: What is measured, as a reader calls it.
        paths: The image files.
    """

    metric: str
    paths: list[Path]

    def result(self, number: int, seen: Sequence[Seen]) -> Any:
        """What is kept of an image, by its number, given what a network sees in it."""

    def accuracy(self, results: Sequence[Any]) -> float:
        """The metric, 0 to 1, from the results of all images."""

    def resampled(self, results: Sequence[Any], resamples: int, seed: int) -> Floats:
        """The metric for each of several resamples of the images, which depend on the seed alone."""


def labelled_images(
    config: str | Path,
    network: Network,
    annotations: str | Path | None = None,
    folder: str | Path | None = None,
    limit: int | None = None,
) -> LabelledImages:
    """The labelled images for a detector or a classifier, see :class:`AnnotatedImages` and :class:`FolderOfClasses`.

    Args:
        config: The network's config.
        network: The network.
        annotations: COCO annotations; by default those that the config tests on.
        folder: The folder of images; by default the one that the config tests on.
        limit: The largest number of images, evenly from all of them.

    Raises:
        ValueError: There are annotations for a classifier, or as the classes raise it.
    """
    if not network.classifies:
        return AnnotatedImages(config, network, annotations, folder, limit)
    if annotations is not None:
        raise ValueError(f"{config}: is a classifier, for which there are no annotations of boxes: leave them out")
    return FolderOfClasses(folder or image_folder(config, Config.fromfile(config)), network, limit)


class FolderOfClasses:
    """Images in one folder for each class, as mmpretrain's CustomDataset reads them; the metric is the top-1 accuracy.

    Args:
        folder: With the folders of the classes. They are the network's classes by their names if it has classes of all
            these names, else in the order of their names.
        network: A classifier.
        limit: The largest number of images, evenly from all of them.

    Raises:
        ValueError: There are no images, or not as many classes as the network has.
    """

    metric = "top-1 accuracy"

    def __init__(self, folder: str | Path, network: Network, limit: int | None = None):
        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: there is no such folder of images")
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if set(classes) <= set(network.classes):
            numbers = [network.classes.index(name) for name in classes]
        else:
            numbers = list(range(len(classes)))
            count = getattr(network.model.head, "num_classes", None)
            if count not in (None, len(classes)):
                raise ValueError(f"{folder}: has {len(classes)} folders, and the network {count} classes")
        labelled = [
            (path, number)
            for name, number in zip(classes, numbers, strict=True)
            for path in sorted(Path(folder, name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not labelled:
            raise ValueError(f"{folder}: has no images in folders of classes ({', '.join(SUFFIXES)})")
        labelled = _evenly(labelled, limit)
        self.paths = [path for path, _ in labelled]
        self._labels = [label for _, label in labelled]

    def result(self, number: int, seen: Sequence[Seen]) -> bool:
        return max(seen, key=lambda one: one.score).label == self._labels[number]

    def accuracy(self, results: Sequence[bool]) -> float:
        return float(np.mean(results))

    def resampled(self, results: Sequence[bool], resamples: int, seed: int) -> Floats:
        count = len(results)
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
        return drawn @ np.array(results, float) / count


class AnnotatedImages:
    """Images with COCO's boxes; the metric is COCO's box AP.

    Args:
        config: The detector's config, for what is not given.
        network: The detector.
        annotations: The file of annotations; by default the one that the config tests on.
        folder: The folder of images; by default the one that the config tests on.
        limit: The largest number of images, evenly from all of them.

    Raises:
        ValueError: A file is missing or invalid, or the annotations do not have all of the network's classes.
    """

    metric = "box AP"

    def __init__(
        self,
        config: str | Path,
        network: Network,
        annotations: str | Path | None = None,
        folder: str | Path | None = None,
        limit: int | None = None,
    ):
        cfg = Config.fromfile(config)
        annotations = annotations or annotations_of(config, cfg)[1]
        folder = folder or image_folder(config, cfg)
        whole = load_annotations(annotations)
        ids = {str(category["name"]): category["id"] for category in whole.cats.values()}
        missing = [name for name in network.classes if name not in ids]
        if missing:
            raise ValueError(f"{annotations}: has no class {listed(missing)}, which the network detects")
        self._categories = [ids[name] for name in network.classes]
        images = _evenly(sorted(whole.imgs), limit)
        names = [whole.imgs[image].get("file_name", "") for image in images]
        wrong = [name for name in names if not leads_inside(name, folder) or not Path(folder, name).is_file()]
        if wrong:
            raise ValueError(f"{folder}: has no image {short(wrong[0])}, which the annotations list")
        self.paths = [Path(folder, name) for name in names]
        self._images = images
        self._coco = _only(whole, images)

    def result(self, number: int, seen: Sequence[Seen]) -> Floats:
        """Each detection's label, score, left, top, width and height, D x 6."""
        rows = [
            (one.label, one.score, *one.box[:2], one.box[2] - one.box[0], one.box[3] - one.box[1])
            for one in seen
            if one.box is not None
        ]
        return np.array(rows, np.float64).reshape(-1, 6)

    def accuracy(self, results: Sequence[Floats]) -> float:
        return self._evaluated(results).points["AP"]

    def resampled(self, results: Sequence[Floats], resamples: int, seed: int) -> Floats:
        [found] = bootstrap([self._evaluated(results)], resamples, seed)
        return found["AP"]

    def _evaluated(self, results: Sequence[Floats]) -> Any:
        entries = [
            dict(image_id=image, category_id=self._categories[int(row[0])], score=float(row[1]), bbox=row[2:].tolist())
            for image, rows in zip(self._images, results, strict=True)
            for row in rows
        ]
        return evaluate(self._coco, entries, "bbox")


def image_folder(config: str | Path, cfg: Config) -> Path:
    """The folder of the images that a config tests on.

    Raises:
        ValueError: The config does not say.
    """
    loader = cfg.get("test_dataloader")
    dataset = (loader.get("dataset") if isinstance(loader, Mapping) else None) or {}
    prefix = dataset.get("data_prefix")
    prefix = prefix.get("img") if isinstance(prefix, Mapping) else prefix
    if not isinstance(prefix, str):
        raise ValueError(f"{config}: its test_dataloader does not say where the images are: give their folder")
    return Path(dataset.get("data_root") or "", prefix)


def _evenly(items: list[Any], limit: int | None) -> list[Any]:
    if limit is None or limit >= len(items):
        return items
    return [items[number * len(items) // limit] for number in range(limit)]


def _only(coco: COCO, images: Sequence[Any]) -> COCO:
    """The annotations of some images."""
    chosen = set(images)
    found = COCO()
    found.dataset = copy.copy(coco.dataset)
    for kind, key in (("images", "id"), ("annotations", "image_id")):
        found.dataset[kind] = [entry for entry in coco.dataset[kind] if entry[key] in chosen]
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found
