"""Whether the data sets of a study are complete, before the first of its runs begins."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config

from sa_mmdet.engine.check_classes import parts
from sa_mmdet.engine.check_dataset import missing_or_empty
from sa_mmdet.image_folders import images_of as classified_images
from sa_mmdet.image_folders import prefix_of
from sa_mmdet.messages import listed
from sa_mmdet.untrusted import read_json

_SHOWN = 3
# Images of data sets that need not be here yet: COCO 2017 by the names of its annotations, ImageNet by its type.
_KNOWN = {"instances_train2017.json": 118_287, "instances_val2017.json": 5_000}
_CIFAR = {"train": 50_000, "test": 10_000}
_CLASSIFICATION = {"ImageNet": {"train": 1_281_167, "test": 50_000}, "CIFAR10": _CIFAR, "CIFAR100": _CIFAR}


def check_data(cfgs: Iterable[Config], phases: Iterable[str] = ("train", "test")) -> None:
    """Check that the annotations in COCO's format, or the lists and folders of classifiers, and all images are there.

    Args:
        cfgs: The configs.
        phases: Which of their data sets to look at.

    Raises:
        ValueError: A file is missing or empty; it says how to get COCO, if it is COCO. Or an image has a class that
            the classifier does not have.
    """
    cfgs, phases = tuple(cfgs), tuple(phases)
    checked = set()
    for cfg in cfgs:
        for settings in (one for phase in phases for one in _classified(cfg.get(f"{phase}_dataloader"))):
            classes = _classes(cfg)
            if (repr(settings), classes) not in checked:
                checked.add((repr(settings), classes))
                _check_classified(settings, classes)
    wanted = dict.fromkeys(
        place for cfg in cfgs for phase in phases for place in _places(cfg.get(f"{phase}_dataloader"))
    )
    for annotations, folder in wanted:
        if not os.path.isfile(annotations):
            raise ValueError(f"{annotations}: there is no such file{_hint(annotations)}")
        names = _images(annotations)
        places = {os.path.join(folder, name): name for name in names}
        missing = sorted(places[path] for path in missing_or_empty(list(places)))
        if missing:
            raise ValueError(
                f"{folder}: {len(missing)} of the {len(names)} images of {annotations} are missing or empty, such as "
                f"{listed(missing, _SHOWN)}{_hint(annotations)}"
            )


def _check_classified(settings: Mapping[str, Any], classes: int | None) -> None:
    """Check the images of a classifier's data set, and that the classifier has their classes."""
    found = classified_images(settings)
    where = os.path.join(str(settings.get("data_root") or ""), str(settings.get("ann_file") or prefix_of(settings)))
    if not found:
        raise ValueError(f"{where}: has no images: check data_root, ann_file and data_prefix")
    missing = missing_or_empty([path for path, _ in found])
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of its {len(found)} images are missing or empty, such as "
            f"{listed(missing, _SHOWN)}: check data_root and data_prefix"
        )
    path, label = max(found, key=lambda one: one[1])
    if classes is not None and label >= classes:
        raise ValueError(
            f"{where}: {path} is of class {label}, but the classifier has the classes 0 to {classes - 1}: set "
            "model.head.num_classes"
        )


def _classes(cfg: Config) -> int | None:
    head = (cfg.get("model") or {}).get("head")
    found = head.get("num_classes") if isinstance(head, Mapping) else None
    return found if isinstance(found, int) else None


def _classified(loader: Any) -> Iterator[Mapping[str, Any]]:
    """The data sets of MMPretrain's form for images in folders and lists, wrapped or not."""
    for part in _plain(loader):
        is_known = str(part.get("type")).rpartition(".")[2] == "CustomDataset" and part.get("with_label", True)
        if is_known and "://" not in f"{part.get('data_root')}{part.get('ann_file')}{prefix_of(part)}":
            yield part


def images_of(cfg: Config, phase: str) -> int | None:
    """The number of images of a config's data sets; None if that is not known.

    Those of COCO 2017, ImageNet and CIFAR are known before they are downloaded.

    Args:
        cfg: The config.
        phase: 'train' or 'test'.
    """
    loader = cfg.get(f"{phase}_dataloader")
    kind = (loader.get("dataset") or {}).get("type") if isinstance(loader, Mapping) else None
    if kind in _CLASSIFICATION:
        return _CLASSIFICATION[kind][phase]
    classified = list(_classified(loader))
    if classified:
        try:
            return sum(len(classified_images(one)) for one in classified)
        except (OSError, ValueError):  # as the check says before the start
            return None
    files = [place for place, _ in _places(loader)]
    counts = [len(_images(file)) if os.path.isfile(file) else _KNOWN.get(os.path.basename(file)) for file in files]
    known = [count for count in counts if count is not None]
    return sum(known) if files and len(known) == len(files) else None


def _places(loader: Any) -> Iterator[tuple[str, str]]:
    """For each data set in COCO's format, wrapped or not, its annotations and its folder of images."""
    for part in _plain(loader):
        annotations, prefix = part.get("ann_file"), part.get("data_prefix")
        images = prefix.get("img", prefix.get("img_path")) if isinstance(prefix, Mapping) else None
        if not isinstance(annotations, str) or not isinstance(images, str) or not annotations.endswith(".json"):
            continue
        if "://" not in f"{annotations}{images}" and not part.get("backend_args"):
            root = str(part.get("data_root") or "")
            yield os.path.join(root, annotations), os.path.join(root, images)


def _plain(loader: Any) -> Iterator[Mapping[str, Any]]:
    """The configs of the data sets inside MMEngine's wrappers."""
    return (part for part in parts(loader) if isinstance(part, Mapping))


@cache
def _images(annotations: str) -> tuple[str, ...]:
    content = read_json(annotations)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{annotations}: has no list of images: give a file in COCO's format")
    return tuple(str(image.get("file_name", "")) for image in images if isinstance(image, dict))


def _hint(annotations: str) -> str:
    """How to get the data set, for COCO; MMDetection brings a tool for it."""
    if "2017" not in os.path.basename(annotations):
        return ": check data_root, ann_file and data_prefix"
    tool = Path(mmdet.__file__).parent / ".mim" / "tools" / "misc" / "download_dataset.py"
    root = Path(annotations).parent.parent
    return f": MMDetection downloads COCO: python {tool} --dataset-name coco2017 --save-dir {root} --unzip --delete"
