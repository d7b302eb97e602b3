"""Studies of classifiers, which MMPretrain trains; a folder with its name takes its place."""

import importlib
import json
import re
import shutil
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
        (folder / "mmpretrain" / "__init__.py").touch()
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], log: Path, variables: Any, descriptors: Any) -> int:
        self.calls.append(command)
        folder = Path(command[command.index("--work-dir") + 1])
        if command[1].endswith("mmpretrain/.mim/tools/train.py"):
            backbone, seed = (SA if "sa" in folder.parent.name else NONE), int(folder.name[-1])
            write_classifier(folder, backbone, seed, strength=1.5 if "sa" in folder.parent.name else 1.0)
            (folder / "results.pkl").rename(folder / "kept.pkl")
            (folder / "last_checkpoint").write_text(str(folder / "epoch_100.pth"))
        else:
            assert command[1].endswith("mmpretrain/.mim/tools/test.py")
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
