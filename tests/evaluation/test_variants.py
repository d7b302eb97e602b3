"""Runs of different detectors on one page, and runs of one detector that were trained in different ways."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_up_coco import detections, made_up
from mmengine.config import Config
from places import CONFIGS, Tool

TOOL = "analysis_tools/report.py"
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def page(tool: Tool, tmp_path: Path) -> Any:
    """Makes the page about work directories, each given by its name, its config's name and changes to the config."""

    def make(*runs: tuple[str, str, dict[str, Any]]) -> str:
        truth = made_up(12)
        (tmp_path / "instances.json").write_text(json.dumps(truth))
        folders = []
        for number, (name, config, changes) in enumerate(runs):
            cfg = Config.fromfile(CONFIGS / config)
            cfg.merge_from_dict(dict(test_evaluator=dict(ann_file=str(tmp_path / "instances.json")), **changes))
            folder = tmp_path / name
            (folder / "1" / "vis_data").mkdir(parents=True)
            cfg.dump(folder / "1" / "vis_data" / "config.py")
            (folder / "1" / "vis_data" / "scalars.json").write_text(json.dumps({"coco/bbox_mAP": 0.5, "step": 1}))
            found = [{k: v for k, v in one.items() if k != "segmentation"} for one in detections(truth, 0.1, number)]
            (folder / "results.bbox.json").write_text(json.dumps(found))
            folders.append(folder)
        out = tmp_path / "report.html"
        status, _, errors = tool(TOOL, *folders, "--out", out, "--resamples", 5, "--images", 0)
        assert status == 0, errors
        return out.read_text()

    return make


FASTER, RETINA = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "retinanet/retinanet_sa-r50_fpn_1x_coco.py"
NOTE = "are not of one variant"


def test_different_detectors_are_compared_and_said_to_differ(page: Any) -> None:
    swin = dict(model=dict(backbone=dict(_delete_=True, type="SwinTransformer", embed_dims=96)))
    text = page(("faster", FASTER, {}), ("retina", RETINA, {}), ("swin", FASTER, swin))
    assert "RetinaNet ResNet-50 SA - Faster R-CNN ResNet-50 none: " in text
    assert "Faster R-CNN SwinTransformer none - Faster R-CNN ResNet-50 none: " in text
    assert "the runs have different detectors (Faster R-CNN, RetinaNet): a difference between them is not that" in text
    assert "the runs have different backbones (ResNet-50, SwinTransformer): " in text
    assert NOTE not in text


@pytest.mark.long
def test_runs_that_were_trained_differently_are_different_variants(page: Any) -> None:
    pafpn, longer = dict(model=dict(neck=dict(type="PAFPN"))), dict(train_cfg=dict(max_epochs=24))
    text = page(
        ("plain/seed0", FASTER, {}),
        ("plain/seed1", FASTER, {}),
        ("pafpn/seed0", FASTER, pafpn),
        ("longer/seed0", FASTER, longer),
    )
    plain = "none (type=FPN, max_epochs=12)"
    assert f"none (type=PAFPN, max_epochs=12) - {plain}: " in text
    assert f"none (type=FPN, max_epochs=24) - {plain}: " in text
    assert "1 against 2 runs" in text
    settings = "model.neck.type (&#39;FPN&#39;, &#39;PAFPN&#39;), train_cfg.max_epochs (12, 24)"
    assert f"the runs of Faster R-CNN ResNet-50 none {NOTE}, since they differ in {settings}: they are taken" in text
    assert "for 3 variants" in text


@pytest.mark.long
def test_a_run_of_another_machine_is_of_the_same_variant(page: Any) -> None:
    moved = dict(
        train_dataloader=dict(num_workers=7, dataset=dict(data_root="/elsewhere/coco/")),
        model=dict(backbone=dict(init_cfg=dict(checkpoint="/elsewhere/resnet50"))),
        randomness=dict(seed=3),
    )
    text = page(("plain/seed0", FASTER, {}), ("plain/seed1", FASTER, moved))
    assert NOTE not in text
    assert "a difference between them" not in text
