"""What configs read of a folder of images: lists, or the folders train and val."""

from pathlib import Path

import pytest

from sa_mmdet.image_folders import data_of


def make(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


def test_lists_come_before_folders(tmp_path: Path) -> None:
    root = make(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog")
    classes, train, val = data_of(root)
    assert classes == ["cat", "dog"]
    assert train == dict(data_root=str(root), ann_file="", data_prefix="train", metainfo=dict(classes=classes))
    assert val["data_prefix"] == "val"
    for name in ("train.txt", "val.txt"):
        (root / name).write_text("x.png 0\n")
    assert data_of(root) == (classes, train, val)  # not with a part of the lists
    (root / "classes.txt").write_bytes("Bär\nteddy bear\n weiß ".encode())
    classes, train, val = data_of(root)
    assert classes == ["Bär", "teddy bear", " weiß "]
    assert train == dict(data_root=str(root), ann_file="train.txt", data_prefix="", metainfo=dict(classes=classes))
    assert val == dict(train, ann_file="val.txt")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "has neither train.txt, val.txt, classes.txt nor the folders train and val: set IMAGE_FOLDER"),
        (["train/cat", "train/dog"], "has neither train.txt"),
        (["train/cat", "train/dog", "val/dog"], "have different folders, such as 'cat'"),
        (["train/cat", "val/cat"], "has 1 classes: a classifier needs two or more"),
        (["train/.cache", "train/a", "train/b", "val/a", "val/b"], "MMPretrain takes .cache for a class: remove it"),
    ],
)
def test_folders_that_would_be_numbered_wrongly_are_refused(folders: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        data_of(make(tmp_path / "animals", *folders))


def test_lists_that_are_no_text_are_named(tmp_path: Path) -> None:
    for name in ("train.txt", "val.txt", "classes.txt"):
        (tmp_path / name).write_bytes(b"\xff\xfe1")
    with pytest.raises(ValueError, match=r"classes.txt: is not text in UTF-8"):
        data_of(tmp_path)
