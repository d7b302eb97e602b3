"""Two small configs, and trainings of them that take no time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_coco import made_up
from study_runs import Runs

from sa_mmdet.studies import launching


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], list[Path]]:
    """Makes two configs that consist of their evaluators; ``metric`` is one of them."""

    def make(evaluators: str) -> list[Path]:
        found = [tmp_path / "plain.py", tmp_path / "sa-plain.py"]
        metric = f"metric = dict(type='CocoMetric', ann_file={str(tmp_path / 'annotations' / 'instances_val.json')!r})"
        for path in found:
            path.write_text(f"{metric}\ntest_evaluator = {evaluators}\n")
        return found

    return make


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    truth = made_up(60)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(truth))
    monkeypatch.setenv("BCCD_ROOT", str(tmp_path))
    found = Runs(truth)
    monkeypatch.setattr(launching, "run", found)
    return found
