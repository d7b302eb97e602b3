"""Results are judged on the images that they belong to, as far as anything tells; files of one name are told apart."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import detections, made_up
from mmengine.config import Config
from places import Tool

from sa_mmdet.evaluation.result_files import names_of

TOOL = "analysis_tools/compare_results.py"


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def boxes(truth: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} | dict(score=0.5) for one in truth["annotations"]
    ]


def split(images: int, seed: int, name: str) -> dict[str, Any]:
    truth = made_up(images, seed=seed)
    for image in truth["images"]:
        image["file_name"] = f"{name}_{image['file_name']}"
    return truth


def record(folder: Path, annotations: Path, **evaluator: Any) -> None:
    """The config of a test, as MMEngine writes it."""
    (folder / "20260101_000000" / "vis_data").mkdir(parents=True)
    cfg = dict(
        test_evaluator=[dict(type="DumpResults"), dict(type="CocoMetric", ann_file=str(annotations), **evaluator)]
    )
    Config(cfg).dump(folder / "20260101_000000" / "vis_data" / "config.py")


@pytest.fixture
def splits(tmp_path: Path) -> tuple[Path, Path]:
    """The annotations of 41 images for training and of 18 others, with ids that coincide."""
    return write(tmp_path / "train.json", split(41, 1, "train")), write(tmp_path / "val.json", split(18, 2, "val"))


def test_validation_results_on_the_training_file_are_told_of(
    splits: tuple[Path, Path], tool: Tool, tmp_path: Path
) -> None:
    train, val = splits
    results = write(tmp_path / "found.bbox.json", boxes(json.loads(val.read_text())))
    status, said, errors = tool(TOOL, train, results)
    assert status == 0, errors
    assert f"{results}: 24 of 41 images have no detection: do these results belong to other images?" in said
    assert "no detection" not in tool(TOOL, val, results)[1]


@pytest.mark.parametrize("place", ["run_comparison", "test.py", "beside"])
def test_results_with_a_config_are_judged_on_their_own_images(
    splits: tuple[Path, Path], tool: Tool, tmp_path: Path, place: str
) -> None:
    train, val = splits
    folder = tmp_path / "work" / "seed0"
    results = write(folder / "results.bbox.json", boxes(json.loads(val.read_text())))
    if place == "run_comparison":
        record(folder, train, outfile_prefix=None)  # of a training, with other options
        record(folder / "new", val, outfile_prefix=str(folder / "new" / "results"))
    elif place == "test.py":
        record(folder, val)
    else:
        record(folder / "other", train, outfile_prefix=str(folder / "others"))
        record(folder / "faster-rcnn", val, outfile_prefix=str(folder / "results"))
    status, _, errors = tool(TOOL, train, results)
    assert status == 1
    assert f"{results}: its run was tested on {val}, where image 1 is 'val_1'; it is 'train_1' in {train}" in errors
    assert tool(TOOL, val, results)[0] == 0
    copy = json.loads(val.read_text())
    for image in copy["images"]:
        image["file_name"] = f"moved/{image['file_name']}"
    assert tool(TOOL, write(tmp_path / "relabelled.json", copy), results)[0] == 0
    val.unlink()
    assert f"its run was tested on {val}, which is not here; it is judged on {train}" in tool(TOOL, train, results)[1]


def test_boxes_beyond_their_images_are_told_of(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(20)
    results = write(tmp_path / "r.json", boxes(truth))
    for image in truth["images"]:
        image.update(width=200, height=150)
        truth["annotations"] = [dict(one, segmentation=[]) for one in truth["annotations"]]
    status, said, _ = tool(TOOL, write(tmp_path / "a.json", truth), results)
    assert status == 0
    assert "boxes reach beyond their images: do these results belong to other images?" in said


def test_few_images_without_a_detection_are_no_matter(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(30)  # the last image has no objects
    results = write(tmp_path / "r.json", boxes(truth))
    assert f"{results}" not in tool(TOOL, write(tmp_path / "a.json", truth), results)[1]


def test_files_of_one_name_are_named_by_their_folders(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(10)
    paths = [write(tmp_path / "w" / f / "seed0" / "results.bbox.json", detections(truth, 0.1)) for f in ("plain", "sa")]
    status, said, errors = tool(TOOL, write(tmp_path / "a.json", truth), *paths, "--resamples", 2)
    assert status == 0, errors
    assert "sa/seed0 - plain/seed0: +0.0 box AP" in said


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["w/a.bbox.json", "w/b.bbox.json"], ["a.bbox", "b.bbox"]),
        (["w/a/results.bbox.json", "w/b/results.bbox.json", "w/c.json"], ["a", "b", "c"]),
        (["w/results.bbox.json", "w/b/results.bbox.json"], ["results.bbox", "b"]),
        (["w/a/seed0/r.json", "w/a/seed1/r.json", "w/b/seed0/r.json"], ["a/seed0", "a/seed1", "b/seed0"]),
        (["w/a.json", "w/a.json"], ["a", "a (2)"]),
        (["a.json"], ["a"]),
    ],
)
def test_names(paths: list[str], names: list[str]) -> None:
    assert names_of(paths) == names


def test_files_that_would_count_twice_or_are_of_other_tests_are_refused(tool: Tool, tmp_path: Path) -> None:
    truth = made_up(20)
    annotations = write(tmp_path / "truth.json", truth)
    found = [
        write(
            tmp_path / f"run{seed}" / "results.bbox.json",
            [{k: v for k, v in one.items() if k != "segmentation"} for one in detections(truth, 0.1, seed)],
        )
        for seed in range(3)
    ]
    copy = write(tmp_path / "copy.json", json.loads(found[0].read_text()))
    options = ("--resamples", 5, "--names")
    status, said, errors = tool(TOOL, annotations, found[0], found[1], copy, *options, "none", "SA", "none")
    assert status == 1
    assert f"{copy} and {found[0]}, both none, hold the same detections, which would count as two runs: give" in errors
    assert said == ""
    assert tool(TOOL, annotations, found[0], copy, *options, "none", "SA")[0] == 0  # of two variants they may be equal
    for number, path in enumerate(found):
        record(path.parent, annotations)
        config = next(path.parent.glob("*/vis_data/config.py"))
        config.write_text(config.read_text() + f"model = dict(test_cfg=dict(score_thr=0.{number // 2}))\n")
    assert tool(TOOL, annotations, *found, *options, "none", "none", "SA")[0] == 0
    status, _, errors = tool(TOOL, annotations, *found, *options, "none", "SA", "none")
    assert status == 1
    assert (
        f"{found[0]} and {found[2]}, both none, are of tests that differ in model.test_cfg.score_thr (0.0, 0.1): "
        in errors
    )
