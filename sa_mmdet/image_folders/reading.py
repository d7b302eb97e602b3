"""A folder with one folder of images per class."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sa_mmdet.messages import listed, short

# Those that MMPretrain's CustomDataset takes for images in a folder.
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")
_SHOWN = 3  # files that an error names
_PARTS = {"train", "val", "test", "valid", "validation"}


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        classes: For each class the paths of its images, relative to the folder and with '/', in the order of the names.
        others: The paths of files that are not in a folder of a class, or have no image's ending.
    """

    classes: dict[str, list[str]]
    others: list[str]


def read_image_folder(folder: str | Path) -> ImageFolder:
    """List the images FOLDER/<class>/..., also those in folders below.

    Links are followed; what begins with a dot is hidden, and left out.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It has fewer than two classes, a class has no images, a link leads to a folder above, or the folders
            are those of a data set that is split already.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder: give one with a folder of images per class")
    top = _visible(folder)
    names = [entry.name for entry in top if entry.is_dir()]
    if len(names) < 2:
        raise ValueError(f"{folder}: has {len(names)} folders: give a folder with a folder of images for each class")
    if "train" in names and set(names) <= _PARTS:
        raise ValueError(
            f"{folder}: is split already, into {listed(names)}: train on it as it is, or give one of these folders"
        )
    others = [entry.name for entry in top if not entry.is_dir()]
    classes: dict[str, list[str]] = {}
    for name, files in files_by_class(folder).items():
        classes[name] = [path for path in files if is_image_name(path)]
        others += [path for path in files if not is_image_name(path)]
    empty = [name for name, images in classes.items() if not images]
    if empty:
        raise ValueError(
            f"{folder}: {listed(map(short, empty))} has no images, whose names end with {', '.join(ENDINGS)}: "
            "remove the folder, or convert its images"
        )
    return ImageFolder(classes, others)


def files_by_class(folder: str | Path) -> dict[str, list[str]]:
    """The files in each folder of a folder and below it, relative to it, with '/' and sorted; hidden ones are left out.

    Args:
        folder: The folder.

    Raises:
        ValueError: A link leads to a folder above it.
    """
    names = [entry.name for entry in _visible(folder) if entry.is_dir()]
    return {name: sorted(_files(Path(folder), name, (os.path.realpath(folder),))) for name in names}


def is_image_name(path: str) -> bool:
    """Whether a file's name ends like an image's."""
    return path.lower().endswith(ENDINGS)


def check_image_folder(folder: str | Path, images: Iterable[str]) -> None:
    """Refuse images that are empty or that OpenCV, with which classifiers are trained, cannot read.

    Args:
        folder: The folder.
        images: Their paths, relative to it.

    Raises:
        ValueError: Some are; it names the first.
    """
    images = list(images)
    broken = [name for name in images if not _is_image(os.path.join(folder, name))]
    if broken:
        raise ValueError(
            f"{folder}: {len(broken)} of {len(images)} images are empty or broken, or are no images: "
            f"{listed(map(short, broken), _SHOWN)}: remove or replace them"
        )


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _files(root: Path, folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """The files in a folder and in those below, relative to the root; links without a target among them."""
    place = os.path.realpath(root / folder)
    if place in above:
        raise ValueError(f"{root / folder}: is a link to a folder above it: remove it")
    for entry in _visible(root / folder):
        path = f"{folder}/{entry.name}"
        if entry.is_dir():
            yield from _files(root, path, (*above, place))
        elif entry.is_file() or entry.is_symlink():  # not a pipe, which would be waited for
            yield path


def _is_image(path: str) -> bool:
    try:
        data = np.fromfile(path, np.uint8)
        # An eighth of the size is enough to find out, and takes JPEG a fraction of the time.
        return len(data) > 0 and cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8) is not None
    except (OSError, cv2.error):
        return False
