"""Files of classifiers' predictions that are refused, each in a sentence."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import Tool

TOOL = "analysis_tools/compare_results.py"
Entry = dict[str, Any]


def entries(change: Callable[[list[Entry]], Any] = lambda own: own) -> str:
    own = [dict(image=f"{i}.jpg", label=i % 2, scores=[0.3, 0.7]) for i in range(6)]
    return json.dumps(change(own))


def with_first(**fields: Any) -> str:
    return entries(lambda own: [own[0] | fields, *own[1:]])


REFUSED: dict[str, tuple[str, str, str]] = {
    "other images": ("json", entries(lambda own: own[:5]), "has other images than"),
    "an image twice": ("json", entries(lambda own: [*own, own[0]]), "names the image '0.jpg' twice"),
    "other labels": ("json", with_first(label=1), "image '0.jpg' is of class '1', but of '0' in"),
    "scores that are no numbers": ("json", with_first(scores=[0.1, "much"]), "scores that are not numbers"),
    "scores that are NaN": ("json", with_first(scores=[0.1, float("nan")]), "scores that are not a list of numbers"),
    "no scores": ("json", with_first(scores=[]), "scores that are not a list of numbers"),
    "fewer scores": ("json", with_first(scores=[1]), "some images have more scores than others"),
    "ranked and scores": ("json", with_first(scores=None, ranked=[0]), "some images have scores and others have none"),
    "several labels": ("json", with_first(label=[0, 1]), "image '0.jpg' has 2 labels: only images of one class"),
    "a class without a score": (
        "json",
        entries(lambda own: [entry | dict(scores=[1]) for entry in own]),
        "'1', which has no score: the classes are 0 to 0",
    ),
    "a class that a terminal would act on": (
        "json",
        entries(lambda own: [entry | dict(scores={"\x1b[31m": 1}) for entry in own]),
        "'1', which has no score: the classes are \\x1b[31m",
    ),
    "no image": ("json", with_first(image=None), "entry 0 does not name its image"),
    "an empty list": ("json", "[]", "must hold a list with one entry per image"),
    "a class ranked twice": (
        "json",
        json.dumps([dict(image="a", label=0, ranked=[1, 1])]),
        "image 'a' ranks a class twice",
    ),
    "no predictions": ("csv", "image,label\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(6)), "has no predictions"),
    "an empty table": ("csv", "", "needs a first line with the names image, label"),
    "no table": ("csv", "image,label,top1\n0,0," + 200_000 * "x", "is not readable as CSV"),
    "metrics": ("json", '{"accuracy/top1": 61.5}', "must hold a list with one entry per image"),
    "no header": ("csv", "0.jpg,0,1\n", "needs a first line with the names image, label"),
    "a short line": ("csv", "image,label,top1\n0.jpg,0\n", "line 2 has 2 cells, the first line has 3"),
    "a gap in the ranks": ("csv", "image,label,top1,top3\n0.jpg,0,1,2\n", "has columns beside image, label and top1"),
    "a damaged pickle": ("pkl", "no pickle", "bad.pkl: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_files_are_refused_in_a_sentence(name: str, tool: Tool, tmp_path: Path) -> None:
    ending, text, message = REFUSED[name]
    (tmp_path / "good.json").write_text(entries())
    bad = tmp_path / f"bad.{ending}"
    bad.write_text(text)
    status, said, errors = tool(TOOL, tmp_path / "good.json", bad)
    assert status == 1
    assert said == ""
    assert message in errors
    assert str(bad) in errors
    assert errors.strip().isprintable()
    assert len(errors.strip().splitlines()) == 1


def test_a_pickle_is_never_run(tool: Tool, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "trace"),)

    bad = tmp_path / "bad.pkl"
    bad.write_bytes(pickle.dumps([dict(img_path="a", gt_label=0, pred_score=Harm())], protocol=2))
    status, _, errors = tool(TOOL, bad, bad)
    assert status == 1
    assert "which is refused and was not run" in errors
    assert not (tmp_path / "trace").exists()


def test_files_of_detectors_and_classifiers_are_not_mixed(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(entries())
    detections = tmp_path / "results.pkl"
    detections.write_bytes(pickle.dumps([dict(img_id=1, pred_instances=dict(bboxes=[]))]))
    status, _, errors = tool(TOOL, tmp_path / "good.json", detections)
    assert status == 1
    assert "holds boxes in MMDetection's own form: give the JSON of outfile_prefix instead" in errors
    status, _, errors = tool(TOOL, tmp_path / "good.json", "--errors")
    assert status == 2
    assert "--errors: its types are those of detections" in errors
    status, _, errors = tool(TOOL, tmp_path / "none.json")
    assert status == 2
    assert "the following arguments are required: results" in errors
