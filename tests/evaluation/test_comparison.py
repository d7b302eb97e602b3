"""Metrics are those of pycocotools, and those of resamples are those of data sets with repeated images."""

import contextlib
import copy
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from made_up_coco import detections, made_up
from places import Tool
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa_mmdet.evaluation import METRICS, evaluate
from sa_mmdet.evaluation.bootstrap import bootstrap, resampled
from sa_mmdet.evaluation.verdicts import OPEN, rows, word


def coco_of(truth: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def by_pycocotools(truth: dict[str, Any], found: list[dict[str, Any]], task: str) -> list[float]:
    """The six metrics, computed by pycocotools only."""
    dropped = "segmentation" if task == "bbox" else "bbox"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_of(copy.deepcopy(truth))
        results = coco.loadRes([{k: v for k, v in entry.items() if k != dropped} for entry in copy.deepcopy(found)])
        evaluator = COCOeval(coco, results, task)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [value if value >= 0 else math.nan for value in evaluator.stats[:6]]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_metrics_are_those_of_pycocotools_also_if_each_image_is_drawn_once(task: str) -> None:
    truth = made_up()
    found = detections(truth, 0.1)
    evaluation = evaluate(coco_of(truth), found, task)
    expected = by_pycocotools(truth, found, task)
    np.testing.assert_allclose([evaluation.points[name] for name in METRICS], expected, atol=0)
    once = resampled(evaluation, np.ones((1, 30), np.float32))
    np.testing.assert_allclose([once[name][0] for name in METRICS], expected, rtol=0, atol=1e-12)


def as_made(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return found


def each_twice(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(entry) for entry in found for _ in range(2)]


def in_bfloat16(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = torch.tensor([entry["score"] for entry in found]).bfloat16().tolist()
    return [dict(entry, score=score) for entry, score in zip(found, scores, strict=True)]


def all_equal(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(entry, score=0.5) for entry in found]


def repeated(
    truth: dict[str, Any], found: list[dict[str, Any]], times: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data set in which each image stands as often as it was drawn, in the images' order, under new ids."""
    many: dict[str, Any] = dict(images=[], categories=truth["categories"], annotations=[])
    results = []
    for image, count in zip(truth["images"], times, strict=True):
        objects = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        detected = [entry for entry in found if entry["image_id"] == image["id"]]
        for _ in range(count):
            number = len(many["images"]) + 1
            many["images"].append({**image, "id": number})
            first = len(many["annotations"]) + 1
            many["annotations"] += [{**entry, "image_id": number, "id": first + i} for i, entry in enumerate(objects)]
            results += [{**entry, "image_id": number} for entry in detected]
    return many, results


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("change", [as_made, each_twice, in_bfloat16, all_equal])
def test_a_resample_equals_a_data_set_with_repeated_images(change: Callable[[list], list], task: str) -> None:
    truth = made_up()
    found = change(detections(truth, 0.1))
    evaluation = evaluate(coco_of(truth), found, task)
    weights = np.random.default_rng(3).multinomial(30, np.full(30, 1 / 30), 4)
    weights = np.concatenate([weights, np.eye(30, dtype=int)[5:6] * 30])  # one image only, thirty times
    values = resampled(evaluation, weights.astype(np.float32))
    for r, times in enumerate(weights):
        expected = by_pycocotools(*repeated(truth, found, times), task)
        np.testing.assert_allclose([values[name][r] for name in METRICS], expected, rtol=0, atol=1e-12)


def test_on_real_images(coco128: Path) -> None:
    truth = json.loads((coco128 / "annotations" / "instances_train2017.json").read_text())
    found = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in detections(truth, 0.1)]
    evaluation = evaluate(coco_of(truth), found, "bbox")
    expected = by_pycocotools(truth, found, "bbox")
    once = resampled(evaluation, np.ones((1, len(truth["images"])), np.float32))
    np.testing.assert_allclose([once[name][0] for name in METRICS], expected, rtol=0, atol=1e-12)


def test_intervals_contain_a_true_difference_and_are_zero_for_equal_results() -> None:
    truth = made_up(60)
    coco = coco_of(truth)
    found = [detections(truth, noise) for noise in (0.1, 0.03)]
    evaluations = [evaluate(coco, entries, "bbox") for entries in (found[0], found[1], found[0])]
    samples = bootstrap(evaluations, 200, seed=0)
    (better, same), _ = rows([[e.points] for e in evaluations], [[sample] for sample in samples], 60, 0.95)
    assert 0 < better["AP"]["low"] < better["AP"]["difference"] < better["AP"]["high"]
    assert [same["AP"][key] for key in ("difference", "low", "high")] == [0, 0, 0]
    assert all(word(row["AP"], 0.95) == OPEN for row in (better, same))  # one run of each
    again = bootstrap(evaluations[:2], 200, seed=0)
    assert np.array_equal(again[1]["AP"], samples[1]["AP"])


def test_an_interval_contains_its_difference_where_each_box_stands_twice(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(20)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    paths = [tmp_path / "none.json", tmp_path / "sa.json"]
    for path, noise in zip(paths, (0.1, 0.03), strict=True):
        found = each_twice(detections(truth, noise))
        path.write_text(json.dumps([{k: v for k, v in entry.items() if k != "segmentation"} for entry in found]))
    out = tmp_path / "out.json"
    arguments = [tmp_path / "truth.json", *paths, "--resamples", 200, "--json", out]
    assert tool("analysis_tools/compare_results.py", *arguments)[0] == 0
    for row in json.loads(out.read_text())["tasks"]["bbox"]["differences"][0].values():
        assert row["low"] <= row["difference"] <= row["high"]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, list[Path]]:
    truth = made_up()
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    paths = []
    for name, noise in (("none", 0.1), ("sa", 0.03)):
        paths.append(tmp_path / f"{name}.bbox.json")
        paths[-1].write_text(json.dumps(detections(truth, noise)))
    return tmp_path / "truth.json", paths


def test_the_tool_prints_metrics_and_sentences_and_writes_files(
    files: tuple[Path, list[Path]], tool: Tool, tmp_path: Path
) -> None:
    outputs = ["--json", tmp_path / "out.json", "--png", tmp_path / "out.png"]
    arguments = [files[0], *files[1], "--names", "none", "SA", "--resamples", 100, *outputs]
    status, printed, _ = tool("analysis_tools/compare_results.py", *arguments)
    assert status == 0
    written = json.loads((tmp_path / "out.json").read_text())
    row = written["tasks"]["bbox"]["differences"][0]["AP"]
    low, high = (f"{100 * row[key]:+.1f}" for key in ("low", "high"))
    sentence = (
        f"SA - none: {100 * row['difference']:+.1f} box AP, 95% interval over the images alone {low} to {high}, "
        "30 images, 1 against 1 run: not told apart: a single run does not show what another seed would change; train"
    )
    assert sentence in printed
    assert printed.count("a single run does not show") == 2  # once for boxes and once for masks
    assert "mask AP" in printed
    expected = by_pycocotools(json.loads(files[0].read_text()), json.loads(files[1][0].read_text()), "bbox")
    line = next(line for line in printed.splitlines() if line.startswith("none "))
    assert line.split()[1:] == [f"{100 * value:.1f}" for value in expected]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def changed(index: int, **fields: Any) -> Callable[[list], list]:
    def change(entries: list) -> list:
        entries[index].update(fields)
        return entries

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(3, image_id=999), "entry 3 names the image 999, which the annotations do not have"),
        (changed(2, category_id=77), "entry 2 names the category 77"),
        (changed(1, score=math.nan), "entry 1 has an invalid score or box: nan"),
        (changed(0, bbox=[1, 2, 3]), "entry 0 has an invalid score or box"),
        (changed(0, bbox=[1, 2, None, 4]), "entry 0 has an invalid score or box"),
        (lambda entries: [{k: v for k, v in entries[0].items() if k != "score"}], "entry 0 lacks score"),
        (changed(4, segmentation="a mask"), "entry 4 has a mask that is not a compressed run-length"),
        (changed(4, segmentation=[[1, 2, 3, 4]]), "entry 4 has a mask that is not a list of polygons"),
        (changed(4, segmentation=dict(size=[480, 640], counts="b'abc'")), "entry 4 has the text of Python's bytes"),
        (changed(4, segmentation=dict(size=[480, 640], counts=[7])), "entry 4 has a run-length code that does not fit"),
        (lambda entries: {"a": 1}, "must hold a list of detections, but holds a dict"),
        (lambda entries: [1], "entry 0 is not an object"),
    ],
)
def test_invalid_results_are_refused_with_the_entry_and_the_reason(
    change: Callable[[list], Any], message: str, files: tuple[Path, list[Path]], tool: Tool
) -> None:
    path = files[1][1]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    status, printed, errors = tool("analysis_tools/compare_results.py", files[0], *files[1])
    assert status == 1
    assert f"{path}: {message}" in errors
    assert printed == ""


def test_unreadable_files_are_refused_and_empty_results_compared(
    files: tuple[Path, list[Path]], tool: Tool, tmp_path: Path
) -> None:
    truth, paths = files
    name = "analysis_tools/compare_results.py"
    (tmp_path / "text.json").write_text("no JSON")
    unreadable = "is not readable as JSON"
    for first, message in (
        (tmp_path / "none.json", unreadable),
        (tmp_path / "text.json", unreadable),
        (paths[0], "is not a file of COCO annotations"),
    ):
        status, _, errors = tool(name, first, paths[0])
        assert status == 1
        assert f"{first}: " in errors
        assert message in errors
    for other in (tmp_path / "none.json", tmp_path / "text.json"):
        status, _, errors = tool(name, truth, paths[0], other)
        assert status == 1
        assert f"{other}: {unreadable}" in errors
    (tmp_path / "empty.json").write_text("[]")
    status, printed, _ = tool(name, truth, paths[0], tmp_path / "empty.json", "--resamples", 20)
    assert status == 0
    assert "has no detections" in printed
    assert "worse" not in printed  # one run of each


def test_the_plot_has_every_difference_with_its_verdict(
    files: tuple[Path, list[Path]], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text as text
    truth, (none, sa) = files
    third = tmp_path / "third.json"
    third.write_text(json.dumps(detections(json.loads(truth.read_text()), 0.3)))
    odd = "cost_$x^{$ <b>"  # no formula, and no tag
    plot = tmp_path / "out.svg"
    arguments = (truth, none, sa, third, "--names", "none", "SA", odd, "--resamples", 20, "--png", plot)
    status, said, errors = tool("analysis_tools/compare_results.py", *arguments)
    assert status == 0, errors
    words = [
        "".join(one.itertext()).strip()
        for one in ElementTree.fromstring(plot.read_text()).iter("{http://www.w3.org/2000/svg}text")
    ]
    for task in ("box", "mask"):
        assert task in words
    assert words.count("SA") == words.count(odd) == 12  # each metric, for boxes and for masks
    for line in (line for line in said.splitlines() if line.startswith("SA - none: ")):
        change, low, high = re.findall(r"[+-]\d+\.\d", line)[:3]
        assert f"{change}  ({low} to {high})  not told apart" in words
