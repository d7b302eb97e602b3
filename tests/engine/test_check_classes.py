"""Class names are checked when a run begins, before it loads anything, whatever wraps the data sets."""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner
from shapes_dataset import shapes_dataset
from torch.utils.data import DataLoader
from toy_training import Toy

from sa_mmdet.coco_format import category_names
from sa_mmdet.engine import check_classes
from sa_mmdet.engine.check_dataset import check_dataset

NAMES = ("circle", "triangle", "square")
SEEN = "they have circle, triangle, square"


_numbers = itertools.count()


class LoadedError(Exception):
    """A data set was loaded."""


@pytest.fixture
def root(shapes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    def keep(message: str, **options: Any) -> None:
        said.append(message)
        print_log(message, **options)

    monkeypatch.setattr(check_classes, "print_log", keep)
    return said


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end where it loads its first data set."""

    def load(self: Any) -> None:
        raise LoadedError

    monkeypatch.setattr(CocoDataset, "full_init", load)


def config(root: Path, classes: Sequence[str] | None) -> dict[str, Any]:
    """What a runner of the toy network needs, with the made-up shapes as data."""
    arguments: dict[str, Any] = dict(
        work_dir=str(root / "work"),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_cfg={},
        test_cfg={},
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_scope="mmdet",
        experiment_name=f"classes{next(_numbers)}",
        log_level="ERROR",
    )
    for phase, split in (("train", "train"), ("val", "val"), ("test", "val")):
        file = f"annotations/instances_{split}.json"
        data = dict(
            type="CocoDataset", data_root=str(root), ann_file=file, data_prefix=dict(img="images/"), pipeline=[]
        )
        if classes is not None:
            data["metainfo"] = dict(classes=classes)
        arguments[f"{phase}_dataloader"] = dict(
            batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler"), dataset=data
        )
        if phase != "train":
            arguments[f"{phase}_evaluator"] = dict(type="CocoMetric", ann_file=str(root / file))
    return arguments


def begin(arguments: dict[str, Any], action: str = "train", runner: Any = Runner) -> None:
    getattr(runner(Toy(), **arguments), action)()


def rewrite(path: Path, *names: str) -> None:
    content = json.loads(path.read_text())
    content["categories"] = [dict(id=NAMES.index(name) + 1 if name in NAMES else 9, name=name) for name in names]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("runner", [Runner, FlexibleRunner])
@pytest.mark.parametrize("action", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("circle", "triangel", "square"),
            rf"class 'triangel' is not in the annotations; {SEEN}: set .*metainfo",
        ),
        (("cat", "dog"), rf"classes 'cat', 'dog' are not in the annotations; {SEEN}"),
    ],
)
def test_wrong_names(root: Path, unloaded: None, runner: Any, action: str, classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begin(config(root, classes), action, runner)


def repeated(dataset: Any) -> Any:
    return dict(type="RepeatDataset", times=2, dataset=dataset)


def concatenated(dataset: Any) -> Any:
    return dict(type="ConcatDataset", datasets=[dataset])


def balanced(dataset: Any) -> Any:
    return dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=dataset)


def mixed(dataset: Any) -> Any:
    return dict(type="MultiImageMixDataset", dataset=repeated(dataset), pipeline=[])


def by_class(dataset: Any) -> Any:
    return dict(dataset, type=CocoDataset)


@pytest.mark.parametrize("wrap", [repeated, concatenated, balanced, mixed, by_class])
def test_wrappers(root: Path, unloaded: None, wrap: Any) -> None:
    cfg = config(root, NAMES)
    dataset = dict(cfg["train_dataloader"]["dataset"], metainfo=dict(classes=("circle", "ring")))
    cfg["train_dataloader"]["dataset"] = wrap(dataset)
    with pytest.raises(ValueError, match=f"class 'ring' is not in the annotations; {SEEN}"):
        begin(cfg)


def test_a_lazy_config(root: Path, unloaded: None) -> None:
    path = root / "lazy.py"
    path.write_text(
        "from mmdet.datasets import CocoDataset\nfrom mmengine.dataset import DefaultSampler, RepeatDataset\n"
        f"part = dict(type=CocoDataset, data_root={str(root)!r}, ann_file='annotations/instances_train.json',\n"
        "            metainfo=dict(classes=('circle', 'ring')), pipeline=[])\n"
        "train_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler),\n"
        "                        dataset=dict(type=RepeatDataset, times=2, dataset=part))\n"
    )
    loader = Config.fromfile(path).train_dataloader
    with pytest.raises(ValueError, match=f"class 'ring' is not in the annotations; {SEEN}"):
        begin(dict(config(root, NAMES), train_dataloader=loader))


@pytest.mark.parametrize("name", ["annotations/instances_train.json", "annotations/instances_val.json"])
def test_a_missing_file_is_named_before_anything_is_loaded(root: Path, unloaded: None, name: str) -> None:
    cfg = config(root, NAMES)
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: there is no such file of annotations: check data_root"):
        begin(cfg)


def test_a_file_that_only_the_evaluator_names(root: Path, unloaded: None) -> None:
    cfg = config(root, NAMES)
    cfg["test_evaluator"] = [cfg["test_evaluator"]]
    cfg["test_evaluator"][0]["ann_file"] = "data/coco/annotations/instances_val2017.json"
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json: there is no such file"):
        begin(cfg, "test")
    with pytest.raises(LoadedError):
        begin(cfg, "train")  # does not need it


def test_right_names_and_files_without_objects(root: Path, unloaded: None, warnings: list[str]) -> None:
    cfg = config(root, NAMES)
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    for action in ("train", "val", "test"):
        with pytest.raises(LoadedError):
            begin(cfg, action)
    assert warnings == []


def test_files_without_categories(root: Path, unloaded: None) -> None:
    for split in ("train", "val"):
        rewrite(root / "annotations" / f"instances_{split}.json")
    with pytest.raises(ValueError, match=r"classes 'circle', .* are not in the annotations; they have none"):
        begin(config(root, NAMES))
    with pytest.raises(LoadedError):
        begin(config(root, NAMES), "test")  # detections on images without labels


def test_a_class_may_be_in_one_file_alone(root: Path, unloaded: None) -> None:
    cfg = config(root, NAMES)
    rewrite(root / "annotations" / "instances_val.json", "circle", "triangle")
    with pytest.raises(LoadedError):
        begin(cfg)
    rewrite(root / "annotations" / "instances_val.json", "triangle", "square")  # MMDetection gives other labels
    with pytest.raises(
        ValueError, match=r"label 0 is 'triangle' in .*instances_val\.json and 'circle' in .*train\.json"
    ):
        begin(cfg)


def test_another_order_and_two_categories_of_one_name(root: Path, unloaded: None, warnings: list[str]) -> None:
    with pytest.raises(LoadedError):
        begin(config(root, ("square", "circle", "triangle")))
    assert "label 0 is 'circle', but will be shown as 'square'" in warnings[0]
    assert "name the classes in the order circle, triangle, square" in warnings[0]
    cfg = config(root, NAMES)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"].append(dict(id=4, name="circle"))
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="several categories have the name circle"):
        begin(cfg)


def test_names_that_the_user_did_not_give(root: Path, unloaded: None, warnings: list[str]) -> None:
    cfg = config(root, None)
    with pytest.raises(ValueError, match=f"are not in the annotations; {SEEN}"):
        begin(cfg)
    for split in ("train", "val"):
        rewrite(root / "annotations" / f"instances_{split}.json", "person", "bicycle")
    with pytest.raises(LoadedError):
        begin(cfg)
    assert "are not in the annotations; they have person, bicycle" in warnings[0]


@DATASETS.register_module()
class WithItsOwnFiles(BaseDataset):
    def load_data_list(self) -> list:
        raise LoadedError


@DATASETS.register_module()
class BuiltOnce(CocoDataset):
    built = 0

    def __init__(self, prefix: str, **options: Any) -> None:
        type(self).built += 1
        super().__init__(ann_file=f"{prefix}_train.json", metainfo=dict(classes=NAMES), **options)


@pytest.mark.parametrize(
    "dataset",
    [
        dict(type="WithItsOwnFiles", ann_file="none.json", metainfo=dict(classes=("ring",))),
        dict(type="BuiltOnce", prefix="annotations/instances", pipeline=[]),
        dict(type="RepeatDataset", times=1, dataset=dict(type="WithItsOwnFiles", metainfo=dict(classes="ring"))),
    ],
)
def test_data_sets_of_other_classes_are_left_alone(root: Path, unloaded: None, dataset: dict[str, Any]) -> None:
    cfg = config(root, NAMES)
    cfg["train_dataloader"]["dataset"] = dataset
    BuiltOnce.built = 0
    with pytest.raises(LoadedError):
        begin(cfg)
    assert BuiltOnce.built == (dataset["type"] == "BuiltOnce")


def test_data_sets_that_are_built_already(root: Path) -> None:
    dataset = shapes_dataset(root, metainfo=dict(classes=("circle", "ring")), test_mode=True)
    arguments = dict(config(root, NAMES), test_dataloader=DataLoader(dataset))
    with pytest.raises(ValueError, match=f"class 'ring' is not in the annotations; {SEEN}"):
        begin(arguments, "test")


def test_the_hook_looks_at_classes_with_constructors_of_their_own(root: Path) -> None:
    options: dict[str, Any] = dict(data_root=str(root), data_prefix=dict(img="images/"), test_mode=True)
    dataset = BuiltOnce("annotations/instances", **options)
    check_dataset(dataset)
    dataset._metainfo["classes"] = ("circle", "ring")
    with pytest.raises(ValueError, match=f"class 'ring' is not in the annotations; {SEEN}"):
        check_dataset(dataset)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"images": [], "categories" : [{"id": 1, "name": "\\u00e9"}], "annotations": []}', ["é"]),
        ('{"categories": [], "info": {"categories": [{"name": "x"}]}}', []),
        ('{"cat\\u0065gories": [{"name": "a"}]}', ["a"]),
        ('{"info": "\\"categories\\"", "categories": [{"name": "a"}, {"name": "b"}]}', ["a", "b"]),
        ('{"note": "categories", "categories": [{"name": "a"}]}', ["a"]),
    ],
)
def test_categories_are_read_alone(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert category_names(path) == names
    long = json.dumps([dict(name="x" * 100, number=n) for n in range(30_000)])
    path.write_text(f'{{"categories": {long}, "images": []}}')
    assert category_names(path) == ["x" * 100] * 30_000


@pytest.mark.parametrize(
    "text", ["", "[]", '{"images": []}', '{"categories": [1]}', '{"categories": [{"id": 1}', "\x00"]
)
def test_files_without_categories_are_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: .*(readable|categories)"):
        category_names(tmp_path / "a.json")
