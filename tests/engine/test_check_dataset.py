import json
import shutil
from pathlib import Path

import pytest
from mmdet.registry import DATASETS
from shapes_dataset import shapes_dataset

from sa_mmdet.engine.check_dataset import check_dataset


@pytest.fixture
def root(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


def test_a_whole_data_set_passes(root: Path) -> None:
    check_dataset(shapes_dataset(root))
    check_dataset(DATASETS.build(dict(type="RepeatDataset", times=2, dataset=shapes_dataset(root))))


def test_missing_and_empty_images_are_named(root: Path) -> None:
    (root / "images" / "val_0001.png").unlink()
    (root / "images" / "val_0003.png").write_bytes(b"")
    message = r"instances_val.json: 2 of its 4 images are missing or empty, such as .*val_0001.png, .*val_0003.png"
    with pytest.raises(FileNotFoundError, match=message):
        check_dataset(shapes_dataset(root))
    with pytest.raises(FileNotFoundError, match="2 of its 4"):
        check_dataset(DATASETS.build(dict(type="ConcatDataset", datasets=[shapes_dataset(root)])))


def test_a_wrong_image_folder_is_named(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"4 of its 4 images .* check data_root and data_prefix"):
        check_dataset(shapes_dataset(root, data_prefix=dict(img="pictures/")))


def test_classes_that_no_category_bears_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no category has the name .*'ring'.*set dataset.metainfo"):
        check_dataset(shapes_dataset(root, metainfo=dict(classes=("ring",)), test_mode=True))


def test_annotations_that_are_no_json_fail_at_once(root: Path) -> None:
    (root / "annotations" / "instances_val.json").write_text(json.dumps({})[:1])
    with pytest.raises(json.JSONDecodeError):
        shapes_dataset(root)
