"""Every metric is pycocotools' own to the last digit, whatever the detections, and so are those of resamples."""

import contextlib
import copy
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_coco import rectangle
from places import Tool
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sa_mmdet.evaluation import METRICS, evaluate
from sa_mmdet.evaluation.bootstrap import resampled

TOOL = "analysis_tools/compare_results.py"
SIDE = 200  # pixels of an image
Entries = list[dict[str, Any]]


def hostile(seed: int, names: bool = False) -> tuple[dict[str, Any], Entries]:
    """Annotations and detections on few positions, so that many overlaps, scores and areas are equal.

    A fifth of the objects are crowds, some areas are the bounds of the ranges of areas, some images and categories have
    no objects or no detections, and in some data sets an image has more than 100 detections of a category.

    Args:
        seed: The seed of all of it.
        names: Whether the ids of images are texts.
    """
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(np.arange(1, 50))[: generator.integers(1, 6)].tolist()
    ids = [f"image {number}" if names else number for number in numbers]
    categories = generator.permutation(np.arange(1, 20))[: generator.integers(1, 4)].tolist()
    images = [dict(id=image, width=SIDE, height=SIDE) for image in ids]

    def placed(moved: Sequence[float]) -> dict[str, Any]:
        x, y, width, height = (float(v) for v in np.clip(moved, [0, 0, 1, 1], [100, 100, 99, 99]))
        return dict(bbox=[x, y, width, height], segmentation=rectangle(x, y, width, height, images[0]))

    def anywhere() -> list[float]:
        return [*(8.0 * generator.integers(0, 4, 2)), *generator.choice([10.0, 32.0, 33.0, 96.0, 98.0], 2)]

    objects: Entries = []
    for image in ids:
        for _ in range(generator.integers(0, 9)):
            own = placed(anywhere())
            area = own["bbox"][2] * own["bbox"][3]
            objects.append(
                dict(
                    own,
                    image_id=image,
                    category_id=int(generator.choice(categories)),
                    area=float(generator.choice([area, 1024, 9216, 0.7 * area])),
                    iscrowd=int(generator.random() < 0.2),
                )
            )
    order = generator.permutation(len(objects))
    annotations = [dict(objects[place], id=number) for number, place in enumerate(order, 1)]
    levels, most = generator.choice([1, 2, 5, 1000]), generator.choice([12, 12, 12, 130])
    found: Entries = []
    for image in ids:
        near = [entry["bbox"] for entry in annotations if entry["image_id"] == image]
        for _ in range(generator.integers(0, most)):
            box = np.array(near[generator.integers(len(near))] if near and generator.random() < 0.7 else anywhere())
            moved = box + generator.integers(-6, 7, 4) * (generator.random() < 0.7)
            found.append(
                dict(
                    placed(moved.tolist()),
                    image_id=image,
                    category_id=int(generator.choice(categories)),
                    score=float(generator.integers(1, levels + 1) / levels),
                )
            )
    truth = dict(
        images=images,
        categories=[dict(id=category, name=f"kind {category}") for category in categories],
        annotations=annotations,
    )
    return truth, [found[place] for place in generator.permutation(len(found))]


def coco_of(truth: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def by_pycocotools(truth: dict[str, Any], found: Entries, task: str) -> tuple[list[float], dict[str, float]]:
    """The six metrics and the AP of each category, computed by pycocotools only."""
    dropped = "segmentation" if task == "bbox" else "bbox"
    own = [{key: value for key, value in entry.items() if key != dropped} for entry in found]
    coco = coco_of(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator = COCOeval(coco, coco.loadRes(own) if own else coco_of({**truth, "annotations": []}), task)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    per_class = {
        coco.cats[category]["name"]: precision[:, :, number].mean() if precision[0, 0, number] >= 0 else math.nan
        for number, category in enumerate(evaluator.params.catIds)
    }
    return [value if value >= 0 else math.nan for value in evaluator.stats[:6]], per_class


def repeated(truth: dict[str, Any], found: Entries, times: Sequence[int]) -> tuple[dict[str, Any], Entries]:
    """The data set in which each image stands as often as it was drawn, in the order of the ids, under new ids."""
    many: dict[str, Any] = dict(images=[], categories=truth["categories"], annotations=[])
    results: Entries = []
    for image, count in zip(sorted(truth["images"], key=lambda one: one["id"]), times, strict=True):
        for _ in range(count):
            number = len(many["images"]) + 1
            many["images"].append({**image, "id": number})
            for entries, kept in ((truth["annotations"], many["annotations"]), (found, results)):
                own = [entry for entry in entries if entry["image_id"] == image["id"]]
                kept += [{**entry, "image_id": number, "id": len(kept) + 1 + i} for i, entry in enumerate(own)]
    return many, results


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(16))
def test_metrics_are_pycocotools_own_to_the_last_digit(seed: int, task: str) -> None:
    truth, found = hostile(seed, names=seed % 4 == 3)
    evaluation = evaluate(coco_of(truth), found, task)
    expected, per_class = by_pycocotools(truth, found, task)
    np.testing.assert_array_equal([evaluation.points[name] for name in METRICS], expected)
    assert evaluation.per_class == pytest.approx(per_class, rel=1e-14, nan_ok=True)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(16, 24))
def test_resamples_are_data_sets_with_repeated_images(seed: int, task: str) -> None:
    truth, found = hostile(seed)
    count = len(truth["images"])
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), 4)
    drawn = np.concatenate([drawn, count * np.eye(count, dtype=int)[:1]])  # the first image only
    values = resampled(evaluate(coco_of(truth), found, task), drawn.astype(np.float32))
    for number, times in enumerate(drawn):
        expected, _ = by_pycocotools(*repeated(truth, found, times), task)
        # The last digit is that of a sum, which is added up in another order.
        np.testing.assert_allclose([values[name][number] for name in METRICS], expected, rtol=0, atol=1e-15)


def test_many_resamples_of_many_images_are_what_the_few_are() -> None:
    """They are computed in blocks, some of which are cut off."""
    truth, found = hostile(5)
    count = len(truth["images"])
    evaluation = evaluate(coco_of(truth), found, "bbox")
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 2111).astype(np.float32)
    together = resampled(evaluation, drawn)
    for number in (0, 63, 64, 1000, 2110):
        alone = resampled(evaluation, drawn[number : number + 1])
        np.testing.assert_allclose([together[m][number] for m in METRICS], [alone[m][0] for m in METRICS], atol=1e-15)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_results_without_detections(task: str) -> None:
    truth, _ = hostile(2)
    evaluation = evaluate(coco_of(truth), [], task)
    np.testing.assert_array_equal([evaluation.points[m] for m in METRICS], by_pycocotools(truth, [], task)[0])


def written(folder: Path, truth: dict[str, Any], found: Entries) -> tuple[Path, Path]:
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(found))
    return folder / "truth.json", folder / "found.json"


def as_the_tool_says(tool: Tool, folder: Path, truth: dict[str, Any], found: Entries) -> dict[str, list[float]]:
    """For each task the six metrics that the tool writes."""
    status, _, errors = tool(TOOL, *written(folder, truth, found), "--json", folder / "out.json")
    assert status == 0, errors
    tasks = json.loads((folder / "out.json").read_text())["tasks"]
    return {
        task: [math.nan if value is None else value for value in own["points"][0].values()]
        for task, own in tasks.items()
    }


def test_a_large_file_that_is_read_in_parts(tool: Tool, tmp_path: Path) -> None:
    truth, _ = hostile(6)
    generator = np.random.default_rng(0)
    places = generator.integers(0, len(truth["annotations"]), 15_000)
    found = [
        dict(
            image_id=truth["annotations"][place]["image_id"],
            category_id=truth["annotations"][place]["category_id"],
            bbox=(np.array(truth["annotations"][place]["bbox"]) + shift).tolist(),
            score=round(score, 3),
        )
        for place, shift, score in zip(
            places.tolist(), generator.integers(0, 9, (15_000, 4)), generator.random(15_000).tolist(), strict=True
        )
    ]
    assert len(json.dumps(found)) > 2**20
    expected = {"bbox": by_pycocotools(truth, found, "bbox")[0]}
    assert as_the_tool_says(tool, tmp_path, truth, found) == expected


def derived(truth: dict[str, Any]) -> Entries:
    """Detections near objects, twice as many as objects, with scores of two digits."""
    generator = np.random.default_rng(0)
    sizes = {image["id"]: image for image in truth["images"]}
    categories = [category["id"] for category in truth["categories"]]
    found: Entries = []
    for entry in 2 * truth["annotations"]:
        image = sizes[entry["image_id"]]
        x, y, width, height = np.maximum(np.array(entry["bbox"]) * (1 + 0.1 * generator.normal(size=4)), 1).tolist()
        other = generator.random() < 0.1
        found.append(
            dict(
                image_id=image["id"],
                category_id=int(generator.choice(categories)) if other else entry["category_id"],
                bbox=[x, y, width, height],
                segmentation=rectangle(x, y, width, height, image),
                score=round(float(generator.random()), 2),
            )
        )
    return found


@pytest.mark.parametrize(
    ("root", "name", "tasks"),
    [("coco128", "instances_train2017.json", ("bbox", "segm")), ("bccd", "instances_test.json", ("bbox",))],
)
def test_on_real_objects(
    root: str, name: str, tasks: Sequence[str], request: pytest.FixtureRequest, tool: Tool, tmp_path: Path
) -> None:
    truth = json.loads((request.getfixturevalue(root) / "annotations" / name).read_text())
    found = derived(truth)
    if "segm" not in tasks:
        found = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in found]
    expected = {task: by_pycocotools(truth, found, task)[0] for task in tasks}
    assert as_the_tool_says(tool, tmp_path, truth, found) == expected


def test_masks_without_masks_to_judge_them_by(tool: Tool, tmp_path: Path) -> None:
    truth, found = hostile(0)
    del truth["annotations"][2]["segmentation"]
    paths = written(tmp_path, truth, found)
    status, _, errors = tool(TOOL, *paths)
    assert status == 1
    assert f"{paths[0]}: annotation 3 has no mask to judge masks by" in errors
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in found]
    assert tool(TOOL, *written(tmp_path, truth, boxes))[0] == 0
