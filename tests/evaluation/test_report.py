"""The page contains the metrics of the runs, and a browser shows it without an error."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_up_coco import detections, made_up
from mmengine.config import Config
from places import CONFIGS, Tool

from sa_mmdet.evaluation import read_run

TOOL = "analysis_tools/report.py"
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
LOG = """2026/01/02 03:04:05 - mmengine - INFO -
System environment:
    Python: 3.11.7 (main)
    PyTorch: 2.13.0+cpu
    MMEngine: 0.10.7
Runtime environment:
    seed: 7
"""


@pytest.fixture(scope="module")
def work_dirs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The work directories of two trainings on a made-up val2017, as MMEngine and run_comparison write them."""
    root = tmp_path_factory.mktemp("report")
    truth = made_up(20)
    (root / "val2017").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    for image in truth["images"]:
        cv2.imwrite(str(root / "val2017" / image["file_name"]), pixels)
    (root / "instances_val2017.json").write_text(json.dumps(truth))
    folders = []
    for variant, noise in (("", 0.1), ("sa-", 0.02)):
        cfg = Config.fromfile(CONFIGS / "faster_rcnn" / f"faster-rcnn_{variant}r50_fpn_1x_coco.py")
        cfg.test_evaluator.ann_file = str(root / "instances_val2017.json")
        cfg.test_dataloader.dataset.data_root = str(root)
        cfg.test_dataloader.dataset.data_prefix = dict(img="val2017")
        folder = root / f"faster_{variant}r50" / "seed7"
        for time, epochs in (("20260101_000000", (1, 2)), ("20260102_000000", (2, 3))):  # stopped, resumed
            (folder / time / "vis_data").mkdir(parents=True)
            cfg.dump(folder / time / "vis_data" / "config.py")
            (folder / time / f"{time}.log").write_text(LOG)
            lines: list[dict[str, Any]] = []
            for epoch in epochs:
                lines.append(dict(loss=2 / epoch, step=10 * epoch, epoch=epoch))
                lines.append({"coco/bbox_mAP": 0.1 * epoch, "coco/bbox_mAP_50": 0.5, "step": epoch})
            text = "\n".join(json.dumps(line) for line in lines)
            (folder / time / "vis_data" / "scalars.json").write_text(f"{text}\n{{broken")
        found = detections(truth, noise)
        boxes = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in found]
        (folder / "results.bbox.json").write_text(json.dumps(boxes))
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def page(work_dirs: list[Path]) -> Path:
    return work_dirs[0].parent.parent / "report.html"


def test_the_parts_of_a_resumed_run_are_joined(work_dirs: list[Path]) -> None:
    run = read_run(work_dirs[1])
    assert run.name == "faster_sa-r50/seed7"
    assert (run.family, run.backbone, run.attention, run.on_coco) == ("Faster R-CNN", "ResNet-50", "SA", True)
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
    sentence = r"Faster R-CNN ResNet-50 SA - Faster R-CNN ResNet-50 none: \+[\d.]+ box AP, 95% interval over the images"
    assert re.search(sentence, text)
    assert "20 images, 1 against 1 run: not told apart" in text
    # The paper's metrics, each followed by ours of the last epoch.
    row = re.search(r"<td>Faster R-CNN</td><td>ResNet-50</td><td>SA</td><td>1</td><td>(.*?)</td></tr>", text)
    assert row is not None
    assert re.split(r"</td><td[^>]*>", row[1])[:4] == ["38.7", "30.0", "61.2", "50.0"]
    assert '<td>RetinaNet</td><td>ResNet-50</td><td>SA</td><td class="missing">missing</td>' in text
    assert "1.25 (321 ms)" in text
    assert text.count("data:image/jpeg;base64,") == 6
    assert "2 broken lines of its log were skipped" in text
    assert "AP50 that a type of error costs more, 95% intervals over the images alone" in text
    assert re.search(r"<td>Faster R-CNN ResNet-50 SA - [^<]*</td><td>localisation</td><td>-[\d.]+</td>", text)
    assert "Numbers of box detections with scores of 0.3 or more" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)  # nothing is loaded from a network


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_it_without_an_error(work_dirs: list[Path], page: Path, tool: Tool) -> None:
    assert tool(TOOL, *work_dirs, "--out", page, "--resamples", 10, "--pictures", 1)[0] == 0
    # Sort by a column and open an image, and write the result to the title.
    script = """
    <script>
    document.querySelectorAll("th button")[8].click();
    document.querySelectorAll("th button")[8].click();
    document.querySelector("figure img").click();
    const first = document.querySelector("tbody tr").cells[0].textContent;
    const rows = document.querySelectorAll("tbody tr").length;
    document.title = [first, document.querySelector("dialog").open, rows].join("|");
    </script>"""
    tried = page.with_name("tried.html")
    tried.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    shown = subprocess.run([*command, tried.as_uri()], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0
    assert "CONSOLE" not in shown.stderr
    title = re.search(r"<title>(.*?)</title>", shown.stdout)
    assert title is not None
    first, opened, rows = title[1].split("|")
    assert first in ("faster_r50/seed7", "faster_sa-r50/seed7")
    assert opened == "true"
    assert int(rows) > 30
    broken = page.with_name("broken.html")
    broken.write_text("<script>nothing.there()</script>")
    failed = subprocess.run([*command, broken.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" in failed.stderr  # this is how an error would be seen


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
    work_dirs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    arguments = (*reversed(work_dirs), "--out", tmp_path / "report.html", "--resamples", 10, "--images", 0)
    assert tool(TOOL, *arguments)[0] == 0
    plain, sa = (f"Faster R-CNN ResNet-50 {name}" for name in ("none", "SA"))
    assert f"{sa} - {plain}: " in (tmp_path / "report.html").read_text()
    assert tool(TOOL, *arguments, "--baseline", sa)[0] == 0
    assert f"{plain} - {sa}: " in (tmp_path / "report.html").read_text()
    status, _, errors = tool(TOOL, *arguments, "--baseline", "SA")
    assert status == 1
    assert f"baseline='SA' is none of the variants: choose one of {sa}, {plain}" in errors
