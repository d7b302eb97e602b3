"""Error types: each on a case whose answer is known, all on made-up data beside loops, and through the command line."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slow_errors
from made_up_coco import detections, made_up, rectangle
from places import Tool
from pycocotools.coco import COCO

from sa_mmdet.coco_format import Detections
from sa_mmdet.evaluation import evaluate
from sa_mmdet.evaluation.error_types import SIZES, TYPES, Judged, judge
from sa_mmdet.evaluation.error_types_mended import ONE_BY_ONE, mended_precision
from sa_mmdet.evaluation.objects import Objects

TOOL = "analysis_tools/compare_results.py"
CAT, DOG = 1, 2
Entry = dict[str, Any]


def annotated(*objects: tuple[int, list[float]], crowds: tuple[int, ...] = ()) -> Entry:
    """Annotations of one image of 400 x 400 pixels with cats and dogs, with masks as large as the boxes."""
    image = dict(id=1, file_name="1.jpg", height=400, width=400)
    entries = [
        dict(
            id=number,
            image_id=1,
            category_id=kind,
            bbox=box,
            area=box[2] * box[3],
            iscrowd=int(number - 1 in crowds),
            segmentation=rectangle(box[0], box[1], box[2], box[3], image),
        )
        for number, (kind, box) in enumerate(objects, 1)
    ]
    names = [dict(id=CAT, name="cat"), dict(id=DOG, name="dog")]
    return dict(images=[image], categories=names, annotations=entries)


def detected(truth: Entry, *found: tuple[int, float, list[float]]) -> list[Entry]:
    image = truth["images"][0]
    return [
        dict(
            image_id=1,
            category_id=kind,
            score=score,
            bbox=box,
            segmentation=rectangle(box[0], box[1], box[2], box[3], image),
        )
        for kind, score, box in found
    ]


BOX = [100.0, 100.0, 100.0, 100.0]  # large by COCO's rules
APART = [0.0, 300.0, 100.0, 100.0]  # elsewhere
HALF = [100.0, 100.0, 100.0, 50.0]  # an IoU of 0.5 with BOX
THIRD = [150.0, 100.0, 100.0, 100.0]  # one of 1/3
LITTLE = [185.0, 100.0, 100.0, 100.0]  # one of 15/185, below 0.1
CASES: dict[str, tuple[Entry, list[tuple[int, float, list[float]]], dict[str, int], dict[str, float], float]] = {
    # annotations, detections, how many there are of what, what it costs in points of AP50, and AP50
    "right": (annotated((CAT, BOX)), [(CAT, 0.9, HALF)], dict(right=1), {}, 100),
    "classification": (
        annotated((CAT, BOX)),
        [(DOG, 0.9, HALF)],
        dict(classification=1),
        dict(classification=100),  # its detection becomes right
        0,
    ),
    "localisation": (
        annotated((CAT, BOX)),
        [(CAT, 0.9, THIRD)],
        dict(localisation=1),
        dict(localisation=100),
        0,
    ),
    "both": (  # the object stays missed
        annotated((CAT, BOX)),
        [(DOG, 0.9, THIRD)],
        dict(both=1, missed=1),
        dict(missed=100),  # dogs have no objects, so that a wrong one costs nothing
        0,
    ),
    "both costs": (
        annotated((CAT, BOX), (DOG, APART)),
        [(CAT, 0.9, [10, 280, 50, 100]), (CAT, 0.8, BOX), (DOG, 0.9, APART)],
        dict(both=1, right=2),
        dict(both=25),  # the first cat halves the precision of cats
        75,
    ),
    "duplicate": (
        annotated((CAT, BOX), (CAT, APART)),
        [(CAT, 0.9, BOX), (CAT, 0.8, HALF), (CAT, 0.7, APART)],
        dict(right=2, duplicate=1),
        dict(duplicate=100 * 50 / 101 / 3),  # the precision of the upper 50 of 101 recalls rises from 2/3
        100 * (51 + 50 * 2 / 3) / 101,
    ),
    "background": (
        annotated((CAT, BOX)),
        [(CAT, 0.9, LITTLE), (CAT, 0.8, BOX)],
        dict(right=1, background=1),
        dict(background=50),
        50,
    ),
    "missed": (
        annotated((CAT, BOX), (CAT, APART)),
        [(CAT, 0.9, BOX)],
        dict(right=1, missed=1),
        dict(missed=100 * 50 / 101),  # of 101 recalls the upper 50 are not reached
        100 * 51 / 101,
    ),
    "mended has the higher score": (  # a dog of 0.9 is a cat that another detection found at 0.5, behind a wrong one
        annotated((CAT, BOX), (DOG, APART)),
        [(DOG, 0.9, BOX), (DOG, 0.8, APART), (CAT, 0.7, LITTLE), (CAT, 0.5, BOX)],
        dict(right=2, classification=1, background=1),
        dict(classification=50, background=25),
        50,
    ),
    "localisation goes before classification": (
        annotated((CAT, THIRD), (DOG, BOX)),
        [(CAT, 0.9, BOX)],
        dict(localisation=1, missed=1),
        dict(localisation=50, missed=50),
        0,
    ),
    "a crowd excuses its own class": (
        annotated((CAT, BOX), (CAT, APART), crowds=(1,)),
        [(CAT, 0.9, APART), (CAT, 0.8, APART), (CAT, 0.7, BOX)],
        dict(right=1),
        {},
        100,
    ),
    "a crowd has no part in the types": (
        annotated((CAT, BOX), (CAT, APART), crowds=(1,)),
        [(CAT, 0.9, BOX), (DOG, 0.8, APART)],
        dict(right=1, background=1),
        {},
        100,
    ),
}


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("name", CASES)
def test_each_type(name: str, task: str, tool: Tool, tmp_path: Path) -> None:
    truth, found, numbers, costs, precision = CASES[name]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    dropped = "segmentation" if task == "bbox" else "bbox"
    entries = [{key: value for key, value in one.items() if key != dropped} for one in detected(truth, *found)]
    (tmp_path / "found.json").write_text(json.dumps(entries))
    paths = (tmp_path / "truth.json", tmp_path / "found.json")
    status, said, errors = tool(TOOL, *paths, "--errors", "--json", tmp_path / "out.json")
    assert status == 0, errors
    assert "points of it that each type of error costs" in said
    written = json.loads((tmp_path / "out.json").read_text())["tasks"][task]["errors"]["variants"]["found"]
    assert 100 * written["AP50"] == pytest.approx(precision)
    objects = sum(1 - one["iscrowd"] for one in truth["annotations"])
    expected = dict.fromkeys(("right", *TYPES), 0) | dict(objects=objects) | numbers
    assert written["numbers"] == expected
    assert {kind: 100 * cost for kind, cost in written["costs"].items()} == pytest.approx(
        dict.fromkeys(TYPES, 0) | costs
    )


def coco_of(truth: Entry) -> COCO:
    coco = COCO()
    coco.dataset = truth
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def judged_of(truth: Entry, found: list[Entry], task: str) -> Judged:
    return judge(Detections.of(found), Objects.of(coco_of(truth), with_masks=task == "segm"), task)


def plain(entries: list[Entry], seed: int = 0) -> list[Entry]:
    """Boxes alone, with scores that all differ."""
    scores = np.random.default_rng(seed).permutation(len(entries)) / len(entries)
    return [
        {**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": float(score)}
        for one, score in zip(entries, scores, strict=True)
    ]


def many(truth: Entry, seed: int) -> list[Entry]:
    """Detections with errors of all types."""
    wrong = [dict(one, category_id=1 + one["category_id"] % 4) for one in detections(truth, 0.1, seed=seed + 20)]
    return plain([*detections(truth, 0.1, seed=seed), *detections(truth, 0.3, seed=seed + 10), *wrong], seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_costs_and_numbers_beside_loops(size: str, seed: int) -> None:
    truth = made_up(25, seed=seed)
    found = many(truth, seed)
    number = SIZES.index(size)
    judged = judged_of(truth, found, "bbox")
    facts, objects = slow_errors.facts(truth, found, size)
    for kind, name in enumerate(TYPES[:-1]):
        own = judged.counts[number] & (judged.kinds[number] == kind)
        assert own.sum() == sum(one["kind"] == name and one["counts"] for one in facts), name
    assert judged.missed(number).sum() == sum(one["missed"] for one in objects)
    choices = [*ONE_BY_ONE, (0, 1), (1, 3, 5)]
    values = mended_precision(judged, number, np.ones((1, 25)), choices)[:, :, 0]
    for choice, value in zip(choices, values, strict=True):
        expected = slow_errors.mended(truth, found, size, tuple(TYPES[kind] for kind in choice))
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_nothing_is_left_when_all_errors_are_mended(noise: float, task: str) -> None:
    truth = made_up(40)
    found = detections(truth, noise)
    judged = judged_of(truth, found, task)
    for size in range(len(SIZES)):
        values = mended_precision(judged, size, np.ones((1, 40)), [range(len(TYPES))])
        np.testing.assert_allclose(values[np.isfinite(values)], 1, rtol=0, atol=1e-12)
        assert np.isfinite(values).any()


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_nothing_mended_is_pycocotools_ap50_with_equal_scores_and_too_many_detections(task: str) -> None:
    truth = made_up(30)
    found = detections(truth, 0.1)
    found += [dict(found[0], score=0.5) for _ in range(150)]  # of which pycocotools takes the first 100
    judged = judged_of(truth, found, task)
    values = mended_precision(judged, 0, np.ones((1, 30)))[0, :, 0]
    assert np.nanmean(values) == pytest.approx(evaluate(coco_of(truth), found, task).points["AP50"], abs=1e-12)


def test_a_resample_equals_a_data_set_with_repeated_images() -> None:
    truth = made_up(12, seed=4)
    found = many(truth, 4)
    weights = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 3)
    judged = judged_of(truth, found, "bbox")
    for size in SIZES:
        values = mended_precision(judged, SIZES.index(size), weights.astype(float))
        fast = mended_precision(judged, SIZES.index(size), weights.astype(np.float32))
        np.testing.assert_allclose(fast, values, rtol=0, atol=1e-3)
        for r, times in enumerate(weights):
            copies: Entry = dict(images=[], categories=truth["categories"], annotations=[])
            results: list[Entry] = []
            for image, count in zip(truth["images"], times, strict=True):
                for _ in range(count):
                    number = len(copies["images"]) + 1
                    copies["images"].append(dict(image, id=number))
                    for one in truth["annotations"]:
                        if one["image_id"] == image["id"]:
                            own = len(copies["annotations"]) + 1
                            copies["annotations"].append(dict(one, image_id=number, id=own))
                    results += [dict(one, image_id=number) for one in found if one["image_id"] == image["id"]]
            for choice, value in zip(ONE_BY_ONE, values[:, :, r], strict=True):
                expected = slow_errors.mended(copies, results, size, tuple(TYPES[kind] for kind in choice))
                np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_differences_have_paired_intervals_by_size_and_class(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(40)
    paths = []
    for name, noise in (("none", 0.10), ("SA", 0.03)):
        for seed in range(3):
            found = plain(detections(truth, noise + 0.001 * seed), seed)
            paths.append(write(tmp_path / f"{name}{seed}.json", found))
    names = ["--names", "none", "none", "none", "SA", "SA", "SA"]
    arguments = (
        write(tmp_path / "truth.json", truth),
        *paths,
        *names,
        "--resamples",
        100,
        "--json",
        tmp_path / "o.json",
    )
    status, said, errors = tool(TOOL, *arguments, "--errors", "--errors-above", 0.5)
    assert status == 0, errors
    assert "95% intervals over seeds and images" in said
    assert "scores of 0.5 or more, mean of the runs" in said
    found = json.loads((tmp_path / "o.json").read_text())["tasks"]["bbox"]["errors"]
    difference = found["differences"]["SA"]
    base, own = (found["variants"][name] for name in ("none", "SA"))
    seen = []
    for cells, first, second in (
        (difference, base, own),
        *((difference["sizes"][s], base["sizes"][s], own["sizes"][s]) for s in ("small", "medium", "large")),
        *((difference["classes"][c], base["classes"][c], own["classes"][c]) for c in ("kind 1", "kind 2", "kind 3")),
    ):
        for kind in TYPES:
            cell = cells["costs"][kind]
            assert cell["difference"] == pytest.approx(second["costs"][kind] - first["costs"][kind])
            assert cell["low"] <= cell["difference"] <= cell["high"]
            assert 0 <= cell["p"] <= cell["adjusted"] <= 1
            seen.append(cell["adjusted"] > cell["p"])
    assert any(seen)  # adjusted for the number of cells
    assert found["variants"]["none"]["classes"]["kind 4"]["AP50"] is None  # it has no objects
    # A better localisation makes fewer errors of localisation.
    high = [own["numbers"], base["numbers"]]
    assert high[0]["right"] > high[1]["right"]
    # Nobody's errors differ from his own.
    status, said, _ = tool(
        TOOL,
        tmp_path / "truth.json",
        *paths[:2],
        *paths[:2],
        "--names",
        "a",
        "a",
        "b",
        "b",
        "--errors",
        "--resamples",
        20,
    )
    assert status == 0
    assert "loses" not in said
    assert "By size and by class no difference is told apart." in said


def test_files_without_detections_or_objects(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(10)
    arguments = (write(tmp_path / "truth.json", truth), write(tmp_path / "none.json", []))
    status, said, errors = tool(TOOL, *arguments, "--errors", "--json", tmp_path / "out.json")
    assert status == 0, errors
    found = json.loads((tmp_path / "out.json").read_text())["tasks"]["bbox"]["errors"]["variants"]["none"]
    assert found["costs"] == dict.fromkeys(TYPES, 0) | dict(missed=1)
    status, _, errors = tool(TOOL, *arguments, "--errors", "--errors-above", 2)
    assert status == 2
    assert "argument --errors-above" in errors
    truth["annotations"] = []
    arguments = (write(tmp_path / "truth.json", truth), write(tmp_path / "f.json", plain(detections(made_up(10), 0.1))))
    status, said, errors = tool(
        TOOL, *arguments, arguments[1], "--errors", "--resamples", 5, "--json", tmp_path / "out.json"
    )
    assert status == 0, errors
    assert not math.isnan(json.loads((tmp_path / "out.json").read_text())["images"])
    assert "undefined" in said
