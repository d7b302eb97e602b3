"""Dividing a folder of images into training and validation, class by class, by lists: no image is copied."""

import hashlib
import math
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sa_mmdet.atomic_write import atomic_write
from sa_mmdet.messages import listed, short

from .lists import LISTS, check_line, lines_of
from .reading import check_image_folder, read_image_folder


@dataclass(frozen=True)
class Split:
    """A folder of images, divided.

    Attributes:
        train: For each class the training images, relative to the folder.
        val: For each class the validation images.
        others: Files that are in neither, since they have no image's ending or no class.
    """

    train: dict[str, list[str]]
    val: dict[str, list[str]]
    others: list[str]


def split_folder(folder: str | Path, out: str | Path, ratio: float = 0.8, seed: int = 0) -> Split:
    """Write the lists train.txt, val.txt and classes.txt, with which MMPretrain's CustomDataset reads the images.

    A line of the first two is a path, relative to ``out``, a space, and the number of the class, which is the line in
    classes.txt from 0. Which images are drawn depends on their paths and the seed alone, neither on the machine nor on
    the order in which a disk lists files.

    Args:
        folder: The folder, with one folder of images per class.
        out: The folder to write to, which is made if it does not exist.
        ratio: The share of each class's images that are for training, between 0 and 1; one image at least is for
            training, and one for validation.
        seed: The seed of the draw.

    Raises:
        FileExistsError: ``out`` has other lists.
        FileNotFoundError: There is no such folder.
        ValueError: The folder has no two classes, a class has a single image, images are empty or broken, names cannot
            be written in a list, or ``out`` is below the folder and would be a class.
    """
    target = os.path.realpath(out)
    if Path(os.path.realpath(folder)) in Path(target).parents:
        raise ValueError(f"{out}: is in {folder}, where a folder is a class: name another one with --out")
    found = read_image_folder(folder)
    single = [name for name, images in found.classes.items() if len(images) < 2]
    if single:
        raise ValueError(
            f"{folder}: {listed(map(short, single))} has a single image: a class needs one for training and one for "
            "validation"
        )
    # ".." of a link's target is meant, as systems read it.
    base = Path(os.path.relpath(os.path.realpath(folder), target)).as_posix()
    within = "" if base == "." else f"{base}/"
    for images in found.classes.values():
        for path in images:
            check_line(f"{within}{path}", folder)
    check_image_folder(folder, (path for images in found.classes.values() for path in images))
    train, val = {}, {}
    for name, images in found.classes.items():
        count = min(max(1, math.floor(ratio * len(images) + 0.5)), len(images) - 1)
        drawn = set(drawn_order(images, seed)[:count])
        train[name] = [path for path in images if path in drawn]
        val[name] = [path for path in images if path not in drawn]
    parts = [
        "".join(f"{within}{path} {number}\n" for number, images in enumerate(part.values()) for path in images)
        for part in (train, val)
    ]
    _write(Path(out), [*parts, "".join(f"{name}\n" for name in found.classes)])
    return Split(train, val, found.others)


def drawn_order(names: Iterable[str], seed: int) -> list[str]:
    """Bring names into an order that looks random, and is the same everywhere and in whatever order they come.

    Args:
        names: The names; the two ways in which systems write accents count as one.
        seed: The seed.
    """

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{unicodedata.normalize('NFC', name)}".encode()).digest()

    return sorted(names, key=key)


def _write(out: Path, texts: list[str]) -> None:
    for name, text in zip(LISTS, texts, strict=True):
        if (out / name).exists() and lines_of(out / name) != text.split("\n")[:-1]:
            raise FileExistsError(f"{out / name}: holds another list: remove it, or name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in zip(LISTS, texts, strict=True):
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
