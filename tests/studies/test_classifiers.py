"""Studies of classifiers, which MMPretrain trains; a folder with its name takes its place."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from classifier_dirs import NONE, SA, write_classifier
from mmengine.config import Config
from places import Tool

from sa_mmdet.studies import launching

TOOL = "analysis_tools/run_comparison.py"


class MMPretrain:
    """Writes what MMPretrain's tools would, and notes how they are called."""

    def __init__(self, folder: Path) -> None:
        (folder / "mmpretrain" / ".mim" / "tools").mkdir(parents=True)
        for name in ("__init__.py", ".mim/tools/train.py"):
            (folder / "mmpretrain" / name).touch()
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], log: Path, variables: Any, descriptors: Any) -> int:
        self.calls.append(command)
        folder = Path(command[command.index("--work-dir") + 1])
        if command[1].endswith("tools/classifiers/train.py"):
            backbone, seed = (SA if "sa" in folder.parent.name else NONE), int(folder.name[-1])
            write_classifier(folder, backbone, seed, strength=1.5 if "sa" in folder.parent.name else 1.0)
            [record] = folder.glob("*/vis_data/config.py")
            added = "train_dataloader = {'collate_fn': {'type': 'default_collate'}, "  # as its train.py does
            text = re.sub(r"^train_dataloader = (\{|dict\()", added, Path(command[2]).read_text(), flags=re.MULTILINE)
            assert added in text
            record.write_text(text)
            (folder / "results.pkl").rename(folder / "kept.pkl")
            (folder / "last_checkpoint").write_text(str(folder / "epoch_100.pth"))
        else:
            assert command[1].endswith("tools/classifiers/test.py")
            folder.mkdir()
            shutil.copy(folder.parent / "kept.pkl", command[command.index("--out") + 1])
        return 0


@pytest.fixture
def mmpretrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MMPretrain:
    found = MMPretrain(tmp_path / "packages")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    importlib.invalidate_caches()
    monkeypatch.setattr(launching, "run", found)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    return found


@pytest.fixture
def configs(tmp_path: Path) -> list[Path]:
    found = []
    for name, backbone in (("plain", NONE), ("sa", SA)):
        recorded = write_classifier(tmp_path / "made" / name, backbone, strength=None)
        text = next(recorded.glob("*/vis_data/config.py")).read_text()
        found.append(tmp_path / f"{name}.py")
        found[-1].write_text(text)
    return found


def test_classifiers_are_trained_tested_and_judged(
    mmpretrain: MMPretrain, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    arguments = (TOOL, *configs, "--seeds", 0, 1, 2, "--work-dir", work, "--resamples", 200)
    status, said, errors = tool(*arguments)
    assert status == 0, errors
    assert len(mmpretrain.calls) == 2 * 2 * 3
    found = json.loads((work / "comparison.json").read_text())["tasks"]["classification"]
    difference = found["differences"][0]["top1"]["difference"]
    assert difference == pytest.approx(found["means"][1]["top1"] - found["means"][0]["top1"])
    assert difference > 0.05
    assert f"sa - plain: {100 * difference:+.1f} top1" in said
    assert ": better" in said
    page = (work / "report.html").read_text()
    assert "top1" in page
    assert "better" in page
    mmpretrain.calls.clear()
    assert tool(*arguments)[0] == 0
    assert not mmpretrain.calls
    # Every setting counts for a classifier, too.
    status, _, errors = tool(*arguments, "--cfg-options", "optim_wrapper.optimizer.lr=0.2")
    assert status == 1
    assert "optim_wrapper.optimizer.lr (0.1, 0.2)" in errors


def test_their_plan_needs_neither_mmpretrain_s_models_nor_imagenet(
    mmpretrain: MMPretrain, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    status, said, errors = tool(TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--plan-only")
    assert status == 0, errors
    # Table 2's ResNet-50, 1,281,167 images and 100 epochs.
    rate = float(re.findall(r"epochs / (\S+) per second", said)[0])
    hours = 6 * 4.122e9 * 1_281_167 * 100 / rate / 3600
    [told] = [line for line in said.splitlines() if line.startswith("plain/seed0")]
    assert float(told.split(", ")[1].split()[0]) == pytest.approx(hours, rel=0.01)


def test_their_plan_knows_the_size_of_cifar(
    mmpretrain: MMPretrain, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    hours = []
    for name in ("ImageNet", "CIFAR10"):
        configs[0].write_text(configs[0].read_text().replace("ImageNet", name))
        status, said, errors = tool(TOOL, configs[0], "--seeds", 0, "--work-dir", tmp_path / name, "--plan-only")
        assert status == 0, errors
        [told] = [line for line in said.splitlines() if line.startswith("plain/seed0")]
        hours.append(float(told.split(", ")[1].split()[0]))
    assert hours[1] == pytest.approx(hours[0] * 50_000 / 1_281_167, abs=0.05)


def test_without_mmpretrain_it_is_named(
    configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mmpretrain", None)  # as if it were not installed
    status, _, errors = tool(TOOL, *configs, "--work-dir", tmp_path / "work")
    assert status == 1
    assert "MMPretrain, which trains classifiers, is not installed: pip install mmpretrain" in errors


def test_detectors_and_classifiers_are_not_compared(
    mmpretrain: MMPretrain, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    detector = tmp_path / "detector.py"
    evaluator = dict(type="CocoMetric", ann_file=str(tmp_path / "annotations.json"))
    detector.write_text(f"test_evaluator = {Config(evaluator).to_dict()!r}\n")
    status, _, errors = tool(TOOL, *configs, detector, "--work-dir", tmp_path / "work")
    assert status == 1
    assert "detectors" in errors
    assert not mmpretrain.calls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with two images each in train/ and val/; what is in an image is not looked at."""
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "animals" / part / name).mkdir(parents=True)
            for number in (1, 2):
                (tmp_path / "animals" / part / name / f"{number}.JPG").write_bytes(b"image")
    return tmp_path / "animals"


def on_images(tmp_path: Path, root: Path, **places: Any) -> list[Path]:
    """Configs of two classifiers on images in folders or lists."""
    found = []
    for name, backbone in (("plain", NONE), ("sa", SA)):
        changes: dict[str, Any] = {"model__head__num_classes": 2}
        for phase in ("train", "test"):
            own = dict(ann_file=f"{phase}.txt", data_prefix="") if not places else places[phase]
            data = dict(_delete_=True, type="CustomDataset", with_label=True, data_root=str(root), **own)
            changes[f"{phase}_dataloader__dataset"] = data
        made = write_classifier(tmp_path / "of_images" / f"{len(list(tmp_path.iterdir()))}{name}", backbone, **changes)
        found.append(tmp_path / f"{name}.py")
        found[-1].write_text(next(made.glob("*/vis_data/config.py")).read_text())
    return found


FOLDERS: Any = dict(train=dict(data_prefix="train"), test=dict(data_prefix=dict(img_path="val")))


def test_a_study_on_folders_of_images_knows_their_number(
    mmpretrain: MMPretrain, folder: Path, tool: Tool, tmp_path: Path
) -> None:
    arguments = ("--seeds", 0, "--work-dir", tmp_path / "work")
    status, said, errors = tool(TOOL, *on_images(tmp_path, folder, **FOLDERS), *arguments, "--plan-only")
    assert status == 0, errors
    # Two of Table 2's ResNet-50, 4 images each and 100 epochs.
    rate = float(re.findall(r"epochs / (\S+) per second", said)[0])
    hours = 2 * 6 * 4.12e9 * 4 * 100 / rate / 3600
    [left] = [line for line in said.splitlines() if line.startswith("left: ")]
    assert float(left.split()[1]) == pytest.approx(hours, abs=0.06)
    status, _, errors = tool(TOOL, *on_images(tmp_path, folder, **FOLDERS), *arguments, "--resamples", 20)
    assert status == 0, errors
    assert mmpretrain.calls


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("rm -r val", "val: there is no such folder of images: check data_root and data_prefix"),
        ("rm -r train/*/*", "train: has no images: check data_root, ann_file and data_prefix"),
        (": > val/dog/2.JPG", "val: 1 of its 4 images are missing or empty, such as"),
        ("mkdir train/hen; cp train/cat/1.JPG train/hen/h.png", "is of class 2, but the classifier has the classes 0"),
        ("ln -s .. train/cat/up", "up: is a link to a folder above it: remove it"),
    ],
)
def test_folders_that_are_wrong_are_named_before_the_first_training(
    harm: str, message: str, mmpretrain: MMPretrain, folder: Path, tool: Tool, tmp_path: Path
) -> None:
    configs = on_images(tmp_path, folder, **FOLDERS)
    subprocess.run(["sh", "-c", harm], cwd=folder, check=True)
    status, _, errors = tool(TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work")
    assert status == 1
    assert message in errors
    assert errors.count("\n") == 1
    assert not mmpretrain.calls


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "train.txt: there is no such list of images: check data_root and ann_file"),
        ("", "train.txt: has no images"),
        ("train/cat/1.JPG 0\ntrain/cat/9.JPG 0\n", "train.txt: 1 of its 2 images are missing or empty, such as"),
        ("train/cat/1.JPG 0\ntrain/dog/1.JPG 2\n", "is of class 2, but the classifier has the classes 0 to 1"),
        ("train/cat/1.JPG\n", "train.txt: line 1 is 'train/cat/1.JPG': give a path, a space and a class's number"),
        ("train/cat/1.JPG cat\n", "train.txt: line 1 is 'train/cat/1.JPG cat': give a path, a space and a class's"),
    ],
)
def test_lists_that_are_wrong_are_named_before_the_first_training(
    lines: str | None, message: str, mmpretrain: MMPretrain, folder: Path, tool: Tool, tmp_path: Path
) -> None:
    (folder / "test.txt").write_text("val/cat/1.JPG 0\nval/dog/1.JPG 1")
    if lines is not None:
        (folder / "train.txt").write_text(lines)
    status, _, errors = tool(TOOL, *on_images(tmp_path, folder), "--seeds", 0, "--work-dir", tmp_path / "work")
    assert status == 1
    assert message in errors
    assert not mmpretrain.calls
