"""Dividing a folder of images by lists: which images, how the lists are read, and what is refused."""

import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.fileio import list_from_file
from places import Tool

TOOL = "dataset_converters/split_folder.py"


def put(*paths: Path) -> None:
    """Write images, each with a colour of its own."""
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = path.suffix.lower() if path.suffix else ".png"
        _, data = cv2.imencode(ending, np.full((8, 10, 3), number, np.uint8))
        path.write_bytes(data.tobytes())


def read(path: Path) -> list[tuple[str, int]]:
    """The lines of a list, as MMPretrain's CustomDataset divides them."""
    samples = [line.strip().rsplit(" ", 1) for line in list_from_file(str(path))]
    return [(name, int(label)) for name, label in samples]


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Three classes with 10, 5 and 4 images."""
    root = tmp_path / "animals"
    put(*(root / "dog" / f"{number}.jpg" for number in range(10)))
    put(*(root / "hen" / f"{letter}.png" for letter in "abcde"))
    put(*(root / "cat" / f"{letter}.png" for letter in "abcd"))
    return root


def test_every_image_is_in_one_list_with_the_share_of_each_class(animals: Path, tool: Tool, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in animals.rglob("*.*")}
    status, said, errors = tool(TOOL, animals)
    assert status == 0, errors
    assert (animals / "classes.txt").read_text() == "cat\ndog\nhen\n"
    train, val = read(animals / "train.txt"), read(animals / "val.txt")
    assert sorted(train + val) == sorted(
        (path.relative_to(animals).as_posix(), ["cat", "dog", "hen"].index(path.parent.name)) for path in before
    )
    assert Counter(label for _, label in train) == {0: 3, 1: 8, 2: 4}
    assert Counter(label for _, label in val) == {0: 1, 1: 2, 2: 1}
    assert "dog: 8 for training, 2 for validation" in said
    assert "train.txt with 15 images, val.txt with 4, classes.txt with 3 classes" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in animals.iterdir()} == {"cat", "dog", "hen", "train.txt", "val.txt", "classes.txt"}


def test_the_draw_goes_by_names_and_seed_alone(animals: Path, tool: Tool, tmp_path: Path) -> None:
    # Drawn by hand: printf '0\nhen/a.png' | sha256sum, and so on; the largest goes to the validation.
    assert tool(TOOL, animals, "--out", tmp_path / "lists")[0] == 0
    val = {Path(name).parts[-2:] for name, _ in read(tmp_path / "lists" / "val.txt")}
    assert {("hen", "e.png"), ("cat", "a.png")} <= val
    # Another folder, whose files were written in another order, and composed and decomposed accents.
    again = tmp_path / "elsewhere" / "animals"
    for path in sorted(animals.rglob("*.*"), reverse=True):
        target = again / path.relative_to(animals)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert tool(TOOL, again)[0] == 0
    assert tool(TOOL, animals)[0] == 0
    for name in ("train.txt", "val.txt", "classes.txt"):
        assert (again / name).read_bytes() == (animals / name).read_bytes()
    # Repeated it does nothing; another seed draws others, and does not take the place of the lists that are there.
    assert tool(TOOL, animals)[0] == 0
    status, _, errors = tool(TOOL, animals, "--seed", 1)
    assert status == 2
    assert "train.txt: holds another list: remove it, or name another folder with --out" in errors
    assert tool(TOOL, animals, "--seed", 1, "--out", tmp_path / "other")[0] == 0
    assert (tmp_path / "other" / "val.txt").read_text() != (tmp_path / "lists" / "val.txt").read_text()


def test_accents_are_drawn_alike_however_a_system_writes_them(tool: Tool, tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, f"é{number}.png") for number in range(20)]
        put(*(tmp_path / form / kind / name for kind in ("a", "b") for name in names))
        assert tool(TOOL, tmp_path / form, "--ratio", 0.5)[0] == 0
    first, second = (read(tmp_path / form / "train.txt") for form in ("NFC", "NFD"))
    assert [(unicodedata.normalize("NFC", name), label) for name, label in second] == first
    assert second != first


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 5), (0.01, 1), (0.99, 9), (0.25, 3)])
def test_each_side_has_an_image_of_each_class(animals: Path, tool: Tool, ratio: float, count: int) -> None:
    assert tool(TOOL, animals, "--ratio", ratio)[0] == 0
    train, val = (Counter(label for _, label in read(animals / name)) for name in ("train.txt", "val.txt"))
    assert train[1] == count
    assert set(train) == set(val) == {0, 1, 2}


def test_odd_names_are_read_by_mmpretrain_as_they_are(tool: Tool, tmp_path: Path) -> None:
    root = tmp_path / "my animals"
    put(
        root / "teddy bear" / "a b 1.JPG",
        root / "teddy bear" / "c.jpeg",
        root / "teddy bear" / "deep down" / "more" / "d 2.Png",
        root / "Ärger 7" / "x.BMP",
        root / "Ärger 7" / "y#%.tif",
        tmp_path / "far" / "z.png",
        tmp_path / "far away" / "zz.png",
    )
    (root / "Ärger 7" / "link.png").symlink_to(tmp_path / "far" / "z.png")
    (root / "linked").symlink_to(tmp_path / "far away")
    put(tmp_path / "far away" / "second.ppm")
    for hidden in (root / ".ipynb_checkpoints" / "x.png", root / "teddy bear" / "._c.png"):
        put(hidden)
    (root / "teddy bear" / "notes.txt").write_text("no image")
    put(root / "alone.png")
    lists = tmp_path / "lists" / "of animals"
    lists.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    lists.symlink_to(tmp_path / "elsewhere")  # whose parent is another folder than the link's
    status, said, errors = tool(TOOL, root, "--out", lists, "--ratio", 0.5)
    assert status == 0, errors
    assert "left out, 2 files that are no images of a class: alone.png, teddy bear/notes.txt" in said
    assert list_from_file(str(lists / "classes.txt")) == ["linked", "teddy bear", "Ärger 7"]
    samples = read(lists / "train.txt") + read(lists / "val.txt")
    found = {(lists / name).resolve(): label for name, label in samples}
    assert len(samples) == 8
    assert all(path.is_file() for path in found)
    assert found[(root / "teddy bear" / "deep down" / "more" / "d 2.Png").resolve()] == 1
    assert found[(tmp_path / "far" / "z.png").resolve()] == 2
    assert found[(tmp_path / "far away" / "zz.png").resolve()] == 0
    datasets = pytest.importorskip("mmpretrain.datasets", reason="MMPretrain is not installed")
    theirs = datasets.CustomDataset(data_root=str(lists), ann_file="train.txt")
    own = [(str(lists / name), label) for name, label in read(lists / "train.txt")]
    assert [(one["img_path"], one["gt_label"]) for one in map(theirs.get_data_info, range(len(theirs)))] == own


def test_what_cannot_be_divided_is_named(animals: Path, tool: Tool, tmp_path: Path) -> None:
    def said(*options: object) -> str:
        status, _, errors = tool(TOOL, animals, *options)
        assert status == 2
        assert not (animals / "train.txt").exists()
        return " ".join(errors.split())

    for path in ("hen/a.png", "dog/3.jpg"):
        (animals / path).write_bytes(b"" if path == "hen/a.png" else b"no image")
    assert "2 of 19 images are empty or broken, or are no images: 'dog/3.jpg', 'hen/a.png': remove or" in said()
    put(animals / "hen/a.png", animals / "dog/3.jpg")
    (animals / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "1 of 20 images are empty or broken, or are no images: 'cat/gone.png'" in said()
    (animals / "cat" / "gone.png").unlink()
    put(animals / "owl" / "only.png")
    assert "'owl' has a single image: a class needs one for training and one for validation" in said()
    (animals / "owl" / "only.png").rename(animals / "owl" / "only.webp")
    assert "'owl' has no images, whose names end with .jpg, .jpeg, .png" in said()
    shutil.rmtree(animals / "owl")
    put(animals / "cat" / "two\nlines.png")
    assert r"the name 'cat/two\nlines.png' begins with a space or has a line break: rename it" in said()
    (animals / "cat" / "two\nlines.png").unlink()
    put(animals / " owl" / "1.png", animals / " owl" / "2.png")
    assert "the name ' owl/1.png' begins with a space" in said()
    shutil.rmtree(animals / " owl")
    (animals / "cat" / "loop").symlink_to(animals)
    assert "loop: is a link to a folder above it: remove it" in said()
    (animals / "cat" / "loop").unlink()
    (tmp_path / "file").touch()
    assert "File exists" in said("--out", tmp_path / "file")
    assert "where a folder is a class: name another one" in said("--out", animals / "lists")
    for ratio in ("0", "1", "many"):
        assert "argument --ratio" in said("--ratio", ratio)


def test_folders_that_are_no_classes_are_refused(animals: Path, tool: Tool, tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "nowhere", "there is no such folder: give one with a folder of images per class"),
        (animals / "dog", "has 0 folders: give a folder with a folder of images for each class"),
    ):
        status, _, errors = tool(TOOL, folder)
        assert status == 2
        assert message in " ".join(errors.split())
    for part in ("train", "val"):
        shutil.copytree(animals, tmp_path / "divided" / part)
    status, _, errors = tool(TOOL, tmp_path / "divided")
    assert status == 2
    assert "is split already, into train, val" in errors


def test_names_that_are_no_text_are_refused(animals: Path, tool: Tool) -> None:
    try:
        (animals / "cat" / "a.png").rename(animals / "cat" / "\udce9.png")
    except (OSError, UnicodeError):
        pytest.skip("this file system has names in UTF-8 alone")
    status, _, errors = tool(TOOL, animals)
    assert status == 2
    assert r"the name 'cat/\udce9.png' is not in UTF-8: rename it" in " ".join(errors.split())
