import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmdet.registry import DATASETS
from mmengine.fileio import LocalBackend, register_backend
from places import Tool
from shapes_dataset import shapes_dataset

from sa_mmdet.engine.check_dataset import check_dataset

Change = Callable[[dict[str, Any], Path], object]


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
    with pytest.raises(ValueError, match=r"class 'ring' is not in the annotations; they have circle.*set .*metainfo="):
        check_dataset(shapes_dataset(root, metainfo=dict(classes=("ring",)), test_mode=True))


def all_of(kind: str, **fields: Any) -> Change:
    return lambda content, root: [entry.update(fields) for entry in content[kind]]


def only_images(content: dict[str, Any], root: Path) -> None:
    del content["annotations"]


def strings_as_ids(content: dict[str, Any], root: Path) -> None:
    for kind in ("images", "annotations", "categories"):
        for entry in content[kind]:
            entry["id"] = f"{kind[0]}{entry['id']}"
    for entry in content["annotations"]:
        entry.update(image_id=f"i{entry['image_id']}", category_id=f"c{entry['category_id']}")


def mixed_ids(content: dict[str, Any], root: Path) -> None:
    for entry in content["annotations"][::2]:
        entry["id"] = str(entry["id"])


def numbers_as_names(content: dict[str, Any], root: Path) -> None:
    content["categories"].append(dict(id=7, name=7))


def absolute_names(content: dict[str, Any], root: Path) -> None:
    (root / "images").rename(root.parent / "elsewhere")
    for image in content["images"]:
        image["file_name"] = str(root.parent / "elsewhere" / image["file_name"])


def names_in_another_folder(content: dict[str, Any], root: Path) -> None:
    (root / "images").rename(root.parent / "train2017")
    (root / "images").mkdir()
    for image in content["images"]:
        image["file_name"] = f"../../train2017/{image['file_name']}"


def objects_to_ignore_without_a_box(content: dict[str, Any], root: Path) -> None:
    first = content["annotations"][0]
    content["annotations"].append(dict(id=999, image_id=first["image_id"], category_id=1, ignore=1))


# What MMDetection loads, and whether an evaluation can be made of it, too.
LOADED: dict[str, tuple[Change, bool]] = {
    "images alone": (only_images, False),
    "iscrowd: false": (all_of("annotations", iscrowd=False), True),
    "iscrowd: null": (all_of("annotations", iscrowd=None), True),
    "height: 384.0": (all_of("images", height=384.0, width=480.0), True),
    "ids of text": (strings_as_ids, True),
    "ids of both kinds": (mixed_ids, True),
    "a name of digits": (numbers_as_names, True),
    "absolute names": (absolute_names, True),
    "names in another folder": (names_in_another_folder, True),
    "boxes that are ignored": (objects_to_ignore_without_a_box, False),
}


@pytest.mark.parametrize("name", LOADED)
def test_what_mmdetection_loads_is_not_refused(root: Path, name: str, tool: Tool) -> None:
    change, evaluated = LOADED[name]
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    plain = {entry["id"]: entry for entry in json.loads(path.read_text())["annotations"]}
    change(content, root)
    path.write_text(json.dumps(content))
    dataset = shapes_dataset(root, test_mode=True)
    assert len(dataset) == 4
    check_dataset(dataset)
    if not evaluated:
        return
    results = [
        dict(image_id=entry["image_id"], category_id=entry["category_id"], score=0.5, bbox=old["bbox"])
        for entry, old in zip(content["annotations"], plain.values(), strict=True)
    ]
    (root / "r.json").write_text(json.dumps(results))
    status, said, errors = tool("analysis_tools/compare_results.py", path, root / "r.json")
    assert status == 0, errors
    assert said.splitlines()[-1].split()[1] == "100.0"


def test_crowds_of_text_are_named(root: Path) -> None:
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = "0"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="iscrowd='0': give 0 or 1"):
        check_dataset(shapes_dataset(root))


class Mapped(LocalBackend):
    """A storage that keeps files under other names, as Petrel's path_mapping does."""

    def __init__(self, path_mapping: dict[str, str]) -> None:
        self.path_mapping = path_mapping

    def _real(self, path: Any) -> str:
        for name, other in self.path_mapping.items():
            path = str(path).replace(name, other)
        return str(path)

    def get(self, filepath: Any) -> bytes:
        return super().get(self._real(filepath))

    def get_local_path(self, filepath: Any) -> Any:
        return super().get_local_path(self._real(filepath))


def test_files_of_another_backend_are_left_to_it(root: Path) -> None:
    register_backend("mapped", Mapped, force=True)
    args = dict(backend="mapped", path_mapping={"data/shapes": str(root)})
    options: dict[str, Any] = dict(
        data_root="data/shapes", pipeline=[dict(type="LoadImageFromFile", backend_args=args)]
    )
    dataset = shapes_dataset(root, backend_args=args, **options)
    assert dataset[0]["img"].shape == (384, 480, 3)
    check_dataset(dataset)


def test_a_folder_that_cannot_be_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr("os.scandir", refuse)
    check_dataset(shapes_dataset(root))
    (root / "images" / "val_0001.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of its 4"):
        check_dataset(shapes_dataset(root))


def test_annotations_that_are_no_json_fail_at_once(root: Path) -> None:
    (root / "annotations" / "instances_val.json").write_text(json.dumps({})[:1])
    with pytest.raises(json.JSONDecodeError):
        shapes_dataset(root)
