"""The page contains the metrics of the runs, and a browser shows it without an error."""

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import made_up
from places import CONFIGS, Tool
from work_dirs import write_data, write_run

from sa_mmdet.evaluation import read_run

TOOL = "analysis_tools/report.py"


@pytest.fixture(scope="module")
def work_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The work directories of two trainings on a made-up val2017, each stopped and resumed."""
    root = tmp_path_factory.mktemp("report")
    annotations = write_data(root, made_up(20))
    parts: dict = dict(starts=((1, 2), (2, 3)), broken="{broken")
    return [
        write_run(root / f"faster_{name}r50" / "seed7", annotations, config(name), noise=noise, **parts)
        for name, noise in (("", 0.1), ("sa-", 0.02))
    ]


def config(attention: str, detector: str = "faster-rcnn") -> str:
    return f"{detector.replace('-', '_')}/{detector}_{attention}r50_fpn_1x_coco.py"


@pytest.fixture(scope="module")
def page(as_val2017: None, work_dirs: list[Path]) -> Path:
    return work_dirs[0].parent.parent / "report.html"


def test_the_parts_of_a_resumed_run_are_joined(work_dirs: list[Path]) -> None:
    run = read_run(work_dirs[1])
    assert run.name == "faster_sa-r50/seed7"
    assert (run.family, run.backbone, run.attention, run.on_papers_data) == ("Faster R-CNN", "ResNet-50", "SA", True)
    assert run.losses == [(10, 2.0), (20, 1.0), (30, pytest.approx(2 / 3))]
    assert [epoch for epoch, _ in run.metrics] == [1, 2, 3]
    assert run.provenance["seed"] == "7"
    assert run.provenance["PyTorch"] == "2.13.0+cpu"
    assert run.notes == ["2 broken lines of its log were skipped"]


def test_the_page_contains_metrics_significance_speed_and_images(work_dirs: list[Path], page: Path, tool: Tool) -> None:
    speed = page.parent / "speed.json"
    measured = dict(ratio_paired=1.25, min_ms=321.0)
    results = dict(plain=dict(inference=measured, training=measured, memory=dict(ratio=1.0)))
    header = dict(machine="a machine", threads=2, torch="2.13.0")
    speed.write_text(json.dumps(dict(header, runs=[dict(shape=[480, 640], batch=1, results=results)])))
    missing = page.parent / "none"
    status, printed, _ = tool(
        TOOL, *work_dirs, missing, "--out", page, "--resamples", 50, "--images", 2, "--speed", speed
    )
    assert status == 0
    assert f"skipped {missing}: is not the work directory" in printed
    text = page.read_text()
    assert "Faster R-CNN, ResNet-50, tested on instances_val2017.json" in text
    assert re.search(r"SA - none: \+[\d.]+ box AP, 95% interval over the images alone", text)
    assert "20 images, 1 against 1 run: not told apart" in text
    # Our metrics of the last epoch, each with the paper's.
    row = re.search(r"<td[^>]*>Faster R-CNN</td><td[^>]*>ResNet-50</td><td[^>]*>SA</td>(.*?)</tr>", text)
    assert row is not None
    assert re.findall(r"<td[^>]*>(.*?)</td>", row[1])[:4] == ["1", "30.0 (38.7)", "50.0 (61.2)", "missing (41.4)"]
    assert "Table 3" in text
    assert "RetinaNet" not in text.partition("<h2>Provenance")[0]  # nor any other row that nobody measured
    assert "Table 4" not in text
    assert "1.25 (321 ms)" in text
    assert text.count("data:image/jpeg;base64,") == 6
    assert "2 broken lines of its log were skipped" in text
    assert "Box AP50 that a type of error costs more, 95% intervals over the images alone" in text
    assert re.search(r"<td[^>]*>SA - none</td><td[^>]*>localisation</td><td[^>]*>-[\d.]+</td>", text)
    assert "Numbers of box detections with scores of 0.3 or more" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)  # nothing is loaded from a network


def test_rows_of_the_senet_article_are_beside_detectors_with_se_as_it_is(tool: Tool, tmp_path: Path) -> None:
    annotations = write_data(tmp_path, made_up(5))
    maximum: dict[str, Any] = dict(model__backbone__attention__pool="max")
    variants: list[tuple[str, str, dict[str, Any]]] = [("none", "", {}), ("se", "se-", {}), ("max", "se-", maximum)]
    runs = [
        write_run(tmp_path / name / "seed7", annotations, config(attention), noise=None, **changes)
        for name, attention, changes in variants
    ]
    pages = [tmp_path / "two.html", tmp_path / "max.html"]
    for page, own in zip(pages, (runs[:2], runs[2:]), strict=True):
        status, _, errors = tool(TOOL, *own, "--out", page, "--resamples", 20)
        assert status == 0, errors
    text = pages[0].read_text()
    before, _, after = text.partition("SENet (arXiv 1709.01507), Table 7: Faster R-CNN, 2x schedule, box AP")
    assert "Table 3: object detection, box AP" in before
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", after.partition("</table>")[0])
    assert cells[:6] == ["Faster R-CNN", "ResNet-50", "none", "1", "20.0 (38.0)", "50.0 (57.9)"]
    second = cells[cells.index("SE") :]
    assert second[:4] == ["SE", "1", "20.0 (40.4)", "50.0 (61.0)"]
    assert set(cells[6:10]) == {"missing (missing)"}  # which the article does not have either
    assert "Beside the paper" not in pages[1].read_text()


def test_unfinished_work_dirs_and_invalid_results_are_named(work_dirs: list[Path], tool: Tool, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(work_dirs[0], unfinished)
    for log in unfinished.glob("*/vis_data/scalars.json"):
        log.write_text('{"loss": 1.0, "step": 1}\n')
    status, _, errors = tool(TOOL, unfinished, tmp_path / "none", "--out", tmp_path / "out.html")
    assert status == 1
    assert f"{unfinished}: no epoch was finished and evaluated" in errors
    assert "none: is not the work directory of a training" in errors
    assert not (tmp_path / "out.html").exists()
    others = tmp_path / "others"
    shutil.copytree(work_dirs[1], others)
    (others / "results.bbox.json").write_text(
        json.dumps([dict(image_id=99, category_id=1, score=1, bbox=[0, 0, 1, 1])])
    )
    status, _, _ = tool(TOOL, work_dirs[0], others, "--out", tmp_path / "out.html")
    assert status == 0
    text = (tmp_path / "out.html").read_text()
    assert "entry 0 names the image 99, which the annotations do not have" in text
    assert "interval over the images" not in text


def test_the_baseline_is_the_variant_without_attention_or_the_named_one(
    undrawn: None, work_dirs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    arguments = (*reversed(work_dirs), "--out", tmp_path / "report.html", "--resamples", 10, "--images", 0)
    assert tool(TOOL, *arguments)[0] == 0
    plain, sa = (f"Faster R-CNN ResNet-50 {name}" for name in ("none", "SA"))
    assert "SA - none: " in (tmp_path / "report.html").read_text()
    for name in (sa, "SA"):
        assert tool(TOOL, *arguments, "--baseline", name)[0] == 0
        assert "none - SA: " in (tmp_path / "report.html").read_text()
    status, _, errors = tool(TOOL, *arguments, "--baseline", "SE")
    assert status == 1
    assert f"baseline='SE' is none of the variants: choose one of {sa}, {plain}" in errors


def test_costs_are_at_the_size_that_was_trained(tool: Tool, tmp_path: Path) -> None:
    config = "demo/faster-rcnn_sa-r18_fpn_bccd.py"
    folder = write_run(tmp_path / "run", write_data(tmp_path, made_up(4), "instances_val"), config)
    assert tool(TOOL, folder, "--out", tmp_path / "r.html", "--resamples", 2, "--images", 0)[0] == 0
    text = (tmp_path / "r.html").read_text()
    # The config's images have 168 x 224 pixels, and batches are padded to multiples of 32.
    shape = ("--shape", 192, 224, "--convention", "paper", "--format", "csv")
    printed = tool("analysis_tools/get_complexity.py", CONFIGS / config, *shape)[1]
    [counted] = csv.DictReader(io.StringIO(printed[printed.index("config,") :]))
    expected = [f"{float(counted[name]):.2f}" for name in ("trainable_m", "total_g")]
    assert "Multiply-adds (G) at 192 x 224" in text
    row = re.search(r"<td[^>]*>SA</td>(.*?)</tr>", text)
    assert row is not None
    assert re.findall(r"<td[^>]*>(.*?)</td>", row[1])[-2:] == expected
    # Another data set than the paper's: its points are beside the measured ones, not among them.
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert titles[:4] == ["measured here"] * 2 + ["the paper, on COCO val2017"] * 2
    charts = re.findall(r"<figure>(<svg.*?)<figcaption>", text, re.DOTALL)
    for chart, count in zip(charts[:4], (1, 1, 6, 6), strict=True):
        words = re.findall(r"<text[^>]*>(.*?)</text>", chart)
        assert sum(word.partition(",")[0] in ("none", "SE", "SA") for word in words) == count


@pytest.mark.parametrize(
    ("pipeline", "shape"),
    [
        ([dict(type="Resize", scale=(1333, 800))], "800 x 1344"),
        ([dict(type="RandomChoiceResize", scales=[(500, 400), (320, 640)])], "320 x 640"),
        ([dict(type="RandomResize", scale=[(2048, 800)]), dict(type="RandomCrop", crop_size=(512, 512))], "512 x 512"),
        ([dict(type="mmdet.FixShapeResize", width=100, height=64)], "64 x 128"),
        ([dict(type="RandomFlip")], "192 x 224"),  # that of the test
    ],
    ids=str,
)
def test_the_size_that_was_trained(tool: Tool, tmp_path: Path, pipeline: list[dict], shape: str) -> None:
    annotations = write_data(tmp_path, made_up(4), "instances_val")
    folder = write_run(tmp_path / "run", annotations, train_dataloader__dataset__pipeline=pipeline, noise=None)
    assert tool(TOOL, folder, "--out", tmp_path / "r.html")[0] == 0
    text = (tmp_path / "r.html").read_text()
    assert f"Multiply-adds (G) at {shape}<" in text
    note = re.search(r"no run has results.bbox.json or results.segm.json \((.*?)\): nothing is judged", text)
    assert note is not None
    assert note[1].startswith("run_comparison keeps them, and so does test.py with ")
