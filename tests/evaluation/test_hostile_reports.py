"""Work directories of others: nothing in them is run, and no image that they name elsewhere is shown."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_up_coco import detections, made_up
from mmengine.config import Config
from places import CONFIGS, Tool

TOOL = "analysis_tools/report.py"


@pytest.fixture(scope="module")
def plain() -> Config:
    return Config.fromfile(CONFIGS / "faster_rcnn" / "faster-rcnn_r50_fpn_1x_coco.py")


def work_dir(root: Path, text: str, truth: dict[str, Any], annotations: Path) -> Path:
    """As MMEngine and run_comparison leave it, beside images and annotations."""
    (root / "val2017").mkdir(exist_ok=True)
    for image in truth["images"]:
        if not Path(image["file_name"]).is_absolute():
            cv2.imwrite(str(root / "val2017" / image["file_name"]), np.zeros((480, 640, 3), np.uint8))
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(truth))
    folder = root / "run"
    (folder / "1" / "vis_data").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "vis_data" / "config.py").write_text(text)
    (folder / "1" / "vis_data" / "scalars.json").write_text(json.dumps({"coco/bbox_mAP": 0.5, "step": 1}))
    (folder / "results.bbox.json").write_text(json.dumps(detections(made_up(4), 0.1)))
    return folder


def described(plain: Config, root: Path, annotations: Path, **model: Any) -> str:
    cfg = Config(plain.to_dict())
    cfg.test_evaluator.ann_file = str(annotations)
    cfg.test_dataloader.dataset.update(data_root=str(root), data_prefix=dict(img="val2017"))
    cfg.model.update(model)
    return cfg.pretty_text


def report(tool: Tool, folder: Path, *options: object) -> tuple[int, str, str]:
    status, said, errors = tool(TOOL, folder, "--out", folder.parent / "r.html", "--resamples", 2, *options)
    page = folder.parent / "r.html"
    return status, page.read_text() if page.exists() else said, errors


def test_a_program_in_place_of_a_config_is_not_run(tool: Tool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    program = f"import pathlib\npathlib.Path({str(trace)!r}).touch()"
    folder = work_dir(tmp_path, program, made_up(4), tmp_path / "a.json")
    status, _, errors = report(tool, folder)
    assert status == 1
    assert "is more than names and literals, which is refused and was not run: line 1" in errors
    assert not trace.exists()


def test_no_object_that_a_config_names_is_called(tool: Tool, plain: Config, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    text = described(plain, tmp_path, tmp_path / "a.json", neck=dict(type="os.system", command=f"touch {trace}"))
    status, page, _ = report(tool, work_dir(tmp_path, text, made_up(4), tmp_path / "a.json"))
    assert status == 0
    assert "missing" in page
    assert not trace.exists()


def test_objects_of_an_unlisted_category_are_drawn(tool: Tool, plain: Config, tmp_path: Path) -> None:
    truth = made_up(4)
    for entry in truth["annotations"]:
        entry["category_id"] = 77
    text = described(plain, tmp_path, tmp_path / "a.json")
    status, page, errors = report(tool, work_dir(tmp_path, text, truth, tmp_path / "a.json"))
    assert status == 0, errors
    assert "data:image/jpeg" in page


@pytest.mark.parametrize("name", ["/secret.png", "absolute"])
def test_images_elsewhere_are_not_shown(tool: Tool, plain: Config, tmp_path: Path, name: str) -> None:
    root = tmp_path / "data"
    root.mkdir()
    cv2.imwrite(str(tmp_path / "secret.png"), np.zeros((480, 640, 3), np.uint8))
    truth = made_up(4)
    truth["images"][0]["file_name"] = "../../secret.png" if name != "absolute" else str(tmp_path / "secret.png")
    text = described(plain, root, root / "a.json")
    status, page, _ = report(tool, work_dir(root, text, truth, root / "a.json"))
    assert status == 0
    assert page.count("data:image/jpeg") == 2 * (len(truth["images"]) - 1)
    assert "<h3>secret.png" not in page
    assert "are not shown, since their names lead out of the data set&#39;s folder" in page


def test_annotations_in_the_work_directory_show_no_images_of_other_folders(
    tool: Tool, plain: Config, tmp_path: Path
) -> None:
    annotations = tmp_path / "run" / "a.json"
    text = described(plain, tmp_path, annotations)
    status, page, _ = report(tool, work_dir(tmp_path, text, made_up(4), annotations))
    assert status == 0
    assert "data:image/jpeg" not in page


@pytest.mark.parametrize("speed", ["[]", "3", '{"runs": 3}', '{"runs": [{"results": {"a": {}}}]}', "[" * 10_000, ""])
def test_speeds_of_another_form_are_refused(tool: Tool, plain: Config, tmp_path: Path, speed: str) -> None:
    (tmp_path / "speed.json").write_text(speed)
    text = described(plain, tmp_path, tmp_path / "a.json")
    folder = work_dir(tmp_path, text, made_up(4), tmp_path / "a.json")
    status, _, errors = report(tool, folder, "--speed", tmp_path / "speed.json")
    assert status == 1
    assert "is not what benchmark.py writes" in errors or "is not readable as JSON" in errors
    assert len(errors.strip().splitlines()) == 1
