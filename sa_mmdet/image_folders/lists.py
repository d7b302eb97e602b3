"""Lists of images with their classes, and what configs need of a folder with such lists or with folders."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sa_mmdet.messages import listed, short

from .reading import files_by_class, is_image_name

LISTS = ("train.txt", "val.txt", "classes.txt")
_SHOWN = 3  # names in an error


def data_of(root: str | Path) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """What a config needs of a folder of images, which is divided by lists or into the folders train and val.

    Args:
        root: A folder with train.txt, val.txt and classes.txt, or with train/<class> and val/<class>.

    Returns:
        The classes' names, and the settings of MMPretrain's CustomDataset for training and for validation.

    Raises:
        FileNotFoundError: It has neither.
        ValueError: The folders train and val have other classes, or hidden ones, or there are no two classes.
    """
    root = Path(root)
    if all((root / name).is_file() for name in LISTS):
        classes = lines_of(root / LISTS[2])
        places = [dict(ann_file=name, data_prefix="") for name in LISTS[:2]]
    elif (root / "train").is_dir() and (root / "val").is_dir():
        classes = _shared_classes(root / "train", root / "val")
        places = [dict(ann_file="", data_prefix=name) for name in ("train", "val")]
    else:
        raise FileNotFoundError(
            f"{root}: has neither {listed(LISTS)} nor the folders train and val: set IMAGE_FOLDER to a folder with "
            "train/<class> and val/<class>, or divide one with tools/dataset_converters/split_folder.py"
        )
    if len(classes) < 2:
        raise ValueError(f"{root}: has {len(classes)} classes: a classifier needs two or more")
    train, val = (dict(place, data_root=str(root), metainfo=dict(classes=classes)) for place in places)
    return classes, train, val


def _shared_classes(train: Path, val: Path) -> list[str]:
    """The folders of both, which MMPretrain numbers in each on its own, the hidden ones too."""
    first, second = (sorted(entry.name for entry in os.scandir(part) if entry.is_dir()) for part in (train, val))
    hidden = [name for name in first if name.startswith(".")]
    if hidden:
        raise ValueError(f"{train}: MMPretrain takes {listed(hidden)} for a class: remove it")
    if first != second:
        odd = sorted(set(first) ^ set(second))
        raise ValueError(
            f"{train} and {val} have different folders, such as {listed(map(short, odd), _SHOWN)}: give both the same "
            "classes, since their numbers go by the order of the folders"
        )
    return first


def lines_of(path: str | Path) -> list[str]:
    """The lines of a list, as MMEngine reads them.

    Args:
        path: The file.

    Raises:
        ValueError: It is not text in UTF-8.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8") from error
    return lines[:-1] if lines[-1] == "" else lines


def images_listed(path: str | Path) -> list[tuple[str, int]]:
    """The images of a list and the numbers of their classes, as MMPretrain's CustomDataset divides its lines.

    Args:
        path: The file.

    Raises:
        ValueError: A line is not a path, a space and a number.
    """
    found = []
    for number, line in enumerate(lines_of(path), 1):
        name, space, label = line.strip().rpartition(" ")
        if not space or not label.isdecimal():
            raise ValueError(f"{path}: line {number} is {short(line)}: give a path, a space and a class's number")
        found.append((name, int(label)))
    return found


def check_line(path: str, folder: str | Path) -> None:
    """Refuse the path of an image that readers of a list would read as another one.

    Args:
        path: As the list has it.
        folder: The folder of images, which errors name.

    Raises:
        ValueError: It begins with a space, has a line break, or is no text.
    """
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{folder}: the name {short(path)} is not in UTF-8: rename it") from error
    if path != path.lstrip() or "\n" in path or "\r" in path:
        raise ValueError(f"{folder}: the name {short(path)} begins with a space or has a line break: rename it")


def images_of(settings: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The images of a data set and the numbers of their classes, as MMPretrain's CustomDataset finds them.

    Args:
        settings: The data set's config.

    Raises:
        FileNotFoundError: Its list or its folder does not exist.
        ValueError: A line of the list is not a path, a space and a number, or a link leads to a folder above it.
    """
    root = os.path.expanduser(str(settings.get("data_root") or ""))
    folder = os.path.join(root, os.path.expanduser(prefix_of(settings)))
    if settings.get("ann_file"):
        file = os.path.join(root, os.path.expanduser(str(settings["ann_file"])))
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: there is no such list of images: check data_root and ann_file")
        found = images_listed(file)
    elif os.path.isdir(folder):
        by_class = enumerate(files_by_class(folder).values())
        found = [(path, number) for number, files in by_class for path in files if is_image_name(path)]
    else:
        raise FileNotFoundError(f"{folder}: there is no such folder of images: check data_root and data_prefix")
    return [(os.path.join(folder, path), number) for path, number in found]


def prefix_of(settings: Mapping[str, Any]) -> str:
    """The folder of a data set's images below its ``data_root``, in either of the forms that MMPretrain takes.

    Args:
        settings: The data set's config.
    """
    prefix = settings.get("data_prefix") or ""
    return str(prefix.get("img_path", "") if isinstance(prefix, Mapping) else prefix)
