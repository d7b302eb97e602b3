import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from sa_mmdet.coco_format import make_shapes


def test_annotations_hold_what_is_seen(shapes: Path) -> None:
    coco = COCO(str(shapes / "annotations" / "instances_train.json"))
    assert len(coco.getImgIds()) == 16
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(shapes / "images" / image["file_name"]))
        assert pixels is not None
        assert pixels.shape == (image["height"], image["width"], 3)
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(image["id"]))]
        assert not masks or np.sum(masks, axis=0).max() == 1  # hidden parts belong to the object in front
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        x, y, width, height = annotation["bbox"]
        assert (x, y) == (columns[0], rows[0])
        assert (x + width, y + height) == (columns[-1] + 1, rows[-1] + 1)
        assert annotation["area"] == mask.sum()


def test_it_is_made_once_and_the_same_each_time(shapes: Path, tmp_path: Path) -> None:
    make_shapes(tmp_path / "again", dict(train=16, val=4))
    for path in sorted(shapes.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(shapes)).read_bytes()
    stamp = (shapes / "recipe.json").stat().st_mtime_ns
    make_shapes(shapes, dict(train=16, val=4))
    assert (shapes / "recipe.json").stat().st_mtime_ns == stamp


def test_bad_input_is_refused(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="val=0"):
        make_shapes(tmp_path / "new", dict(train=1, val=0))
    with pytest.raises(FileExistsError, match="remove it or name another"):
        make_shapes(shapes, dict(train=1, val=1))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_an_older_generator_is_not_taken(tmp_path: Path) -> None:
    make_shapes(tmp_path / "shapes", dict(train=1))
    recipe = tmp_path / "shapes" / "recipe.json"
    written = json.loads(recipe.read_text())
    del written["version"]  # as the first generator wrote it, whose images were smaller
    recipe.write_text(json.dumps(written, sort_keys=True))
    with pytest.raises(FileExistsError, match="remove it or name another"):
        make_shapes(tmp_path / "shapes", dict(train=1))
