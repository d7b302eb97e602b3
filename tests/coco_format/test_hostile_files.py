"""Annotations and results that are damaged or made to harm: each is refused in a sentence, in little time."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import detections, made_up
from places import Tool

from sa_mmdet.coco_format import leads_inside, load_annotations, load_results


def small() -> dict[str, Any]:
    return made_up(images=4)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def with_polygons(polygon: list[float], count: int = 1, side: int = 640) -> dict[str, Any]:
    content = small()
    entry = dict(content["annotations"][0], iscrowd=0, segmentation=[polygon])
    for image in content["images"]:
        image.update(width=side, height=side)
    content["annotations"] = [dict(entry, id=number + 1) for number in range(count)]
    return content


def replaced(kind: str, field: str, value: Any) -> dict[str, Any]:
    content = small()
    content[kind][0][field] = value
    return content


HUGE = int("9" * 400)
FILES: dict[str, tuple[Callable[[], Any], str]] = {
    "42 KB of polygons": (lambda: with_polygons([200_000.0, 0.0, 0.0, 200_000.0] * 1500), "outline is longer"),
    "many polygons": (lambda: with_polygons([0.0, 0, 99_999, 0, 0, 99_999], 400, 100_000), "outlines of all polygons"),
    "a size of 400 digits": (lambda: replaced("images", "width", HUGE), "width="),
    "an id of 400 digits": (lambda: replaced("images", "id", HUGE), "has the id"),
    "a category of 400 digits": (lambda: replaced("annotations", "category_id", HUGE), "annotation 1"),
    "an area of 400 digits": (lambda: replaced("annotations", "area", HUGE), "invalid box or area"),
    "a box of 400 digits": (lambda: replaced("annotations", "bbox", [HUGE] * 4), "invalid box or area"),
    "a number of 10,000 digits": (lambda: '{"images": ' + "9" * 10_000 + "}", "not readable as JSON"),
    "an infinite box": (lambda: json.dumps(small()).replace("300", "1e400"), ""),
    "counts of 400 digits": (
        lambda: replaced("annotations", "segmentation", dict(size=[480, 640], counts=[HUGE])),
        "run-length code",
    ),
    "deep nesting": (lambda: "[" * 200_000, "not readable as JSON: it is nested too deep"),
    "60,000 categories": (
        lambda: {**small(), "categories": [dict(id=n, name=str(n)) for n in range(60_000)]},
        "has 60000 categories",
    ),
    "no UTF-8": (lambda: "\x00", "not readable as JSON"),
    "a name that is none": (lambda: replaced("images", "file_name", ["/\n\x1b[2J"]), r"file_name=\['/\\n\\x1b\[2J'\]"),
    "a name with a zero": (lambda: replaced("images", "file_name", "a\0b"), "not a file's name"),
    "an id that is a list": (lambda: replaced("annotations", "id", [1]), "has the id"),
    "a crowd of text": (lambda: replaced("annotations", "iscrowd", "0"), "iscrowd='0': give 0 or 1"),
}


@pytest.mark.parametrize("name", FILES)
def test_annotations_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, message = FILES[name]
    path = write(tmp_path / "a.json", make())
    if not message:
        load_annotations(path)
        return
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        load_annotations(path)
    assert time.monotonic() - begin < 10
    said = str(caught.value)
    assert said.startswith(str(path))
    assert said.isprintable()
    assert len(said) < 500


@pytest.mark.parametrize(
    "change",
    [dict(score=HUGE), dict(image_id=HUGE), dict(category_id=HUGE), dict(bbox=[HUGE] * 4), dict(image_id="\x1b[2J")],
)
def test_results_are_refused_in_a_sentence(change: dict[str, Any], tmp_path: Path) -> None:
    coco = load_annotations(write(tmp_path / "a.json", small()))
    entries = detections(small(), 0.1)
    entries[0].update(change)
    with pytest.raises(ValueError, match=r"r\.json: entry 0") as caught:
        load_results(write(tmp_path / "r.json", entries), coco)
    assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="nested too deep"):
        load_results(write(tmp_path / "r.json", "[" * 200_000), coco)


def test_names_that_lead_through_the_data_set_and_out_of_it(tmp_path: Path) -> None:
    root, folder = tmp_path / "data", tmp_path / "data" / "val"
    for name in ("a.png", "b/a.png", "../train/a.png", str(folder / "a.png"), str(root / "train" / "a.png")):
        assert leads_inside(name, folder, root), name
    for name in ("../../a.png", "/a.png", str(tmp_path / "a.png"), str(tmp_path / "database" / "a.png")):
        assert not leads_inside(name, folder, root), name
    assert not leads_inside("../train/a.png", folder)


def test_a_worker_that_dies_is_noticed(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = write(tmp_path / "a.json", small()), write(tmp_path / "r.json", detections(small(), 0.1))
    monkeypatch.setattr(
        "sa_mmdet.evaluation.files.evaluate_found", lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    )
    begin = time.monotonic()
    status, _, said = tool("analysis_tools/compare_results.py", truth, found)
    assert time.monotonic() - begin < 60
    assert status == 1
    assert f"compare_results: {found}: its evaluation was killed" in said


@pytest.mark.parametrize("seed", ["-1", "x", str(2**32), "9" * 5000])
def test_seeds_are_checked(tool: Tool, tmp_path: Path, seed: str) -> None:
    status, _, said = tool("analysis_tools/compare_results.py", "a.json", "r.json", "--seed", seed)
    assert status == 2
    assert "give an integer from 0 to 4294967295" in said


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("analysis_tools/compare_results.py", ("a.json", "r.json", "--json", "none/x.json")),
        ("analysis_tools/compare_results.py", ("a.json", "r.json", "--png", "none/x.png")),
        ("analysis_tools/benchmark.py", ("backbone", "--json", "none/x.json")),
        ("model_converters/bake_shuffle.py", ("none.py", "none.pth", "none/x.pth")),
        ("model_converters/convert_checkpoint.py", ("none.pth", "none/x.pth")),
        ("model_converters/publish_model.py", ("none.pth", "none/x.pth")),
        ("deployment/export_onnx.py", ("none.py", "none.pth", "none/x.onnx")),
    ],
)
def test_a_missing_folder_is_named_before_anything_is_computed(
    tool: Tool, tmp_path: Path, name: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, said = tool(name, *arguments)
    assert status == 1
    assert said.strip().endswith("the folder none does not exist: make it first")
