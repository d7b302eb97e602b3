"""The complexity of every kind of detector in MMDetection's zoo, or the reason why it is not counted."""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from places import Tool

from sa_mmdet.analysis import Complexity, analyze
from sa_mmdet.analysis.detector_forward import inner_detector, prepare

ZOO = Path(mmdet.__file__).parent / ".mim" / "configs"
SHAPE = (256, 256)


def model_of(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Config.fromfile(ZOO / name).model


def counted(name: str, shape: tuple[int, int] = SHAPE) -> Complexity:
    with DefaultScope.overwrite_default_scope("mmdet"):
        return analyze(model_of(name), shape)


def by_pytorch(name: str, shape: tuple[int, int] = SHAPE) -> float:
    """The multiply-adds of all convolutions and matrix products of a forward, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    text = Config(dict(model=model_of(name))).pretty_text.replace("MMSyncBN", "BN")  # which needs a process group
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = inner_detector(MODELS.build(Config.fromstring(text, ".py").model))
    model.eval().requires_grad_(False)
    prepare(model, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *shape))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("yolact/yolact_r50_1xb8-55e_coco.py", ["mask_head.segm_branch"]),
        pytest.param("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", [], marks=pytest.mark.long),
        pytest.param("solo/decoupled-solo-light_r50_fpn_3x_coco.py", [], marks=pytest.mark.long),
        pytest.param("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", [], marks=pytest.mark.long),
        pytest.param("sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py", [], marks=pytest.mark.long),
        ("detr/detr_r50_8xb2-150e_coco.py", []),
    ],
)
def test_what_could_not_be_counted_before(name: str, left_out: list[str]) -> None:
    found = counted(name, (128, 128))
    assert list(found.not_counted) == left_out
    assert min(found.backbone, found.neck, found.heads) > 0
    if importlib.util.find_spec("torch.utils.flop_counter"):  # it came with PyTorch 2.1
        # MMEngine counts norms and upsampling, too.
        expected = by_pytorch(name, (128, 128))
        assert expected <= found.total <= 1.05 * expected


def test_yolacts_prototypes_are_counted() -> None:
    found = counted("yolact/yolact_r50_1xb8-55e_coco.py", (550, 550))
    # Three convolutions at 69 x 69 positions, one at 138 x 138, one to 32 prototypes, and the masks of 100 detections.
    prototypes = 256 * 256 * 9 * (3 * 69**2 + 138**2) + 256 * 32 * 138**2 + 138**2 * 32 * 100
    # Per position of all levels one convolution, then those to 81 classes, 4 deltas, 32 coefficients of 3 anchors.
    boxes = (69**2 + 35**2 + 18**2 + 9**2 + 5**2) * 256 * 9 * (256 + 3 * (81 + 4 + 32))
    assert found.heads == pytest.approx(prototypes + boxes, rel=2e-3)


# What papers and MMDetection print for a whole detector, in billions: RTMDet's README at 640 x 640, and at 800 x 1280
# the Swin paper (arXiv 2103.14030, Table 2) for 1000 proposals and 100 masks.
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "shape", "giga"),
    [
        ("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", (640, 640), 8.1),
        ("rtmdet/rtmdet_s_8xb32-300e_coco.py", (640, 640), 14.8),
        ("rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", (640, 640), 11.8),
        ("atss/atss_r50_fpn_1x_coco.py", (800, 1280), 205),
        ("sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py", (800, 1280), 166),
    ],
)
def test_published_numbers(name: str, shape: tuple[int, int], giga: float) -> None:
    assert counted(name, shape).total / 1e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.long
def test_the_published_number_of_a_cascade_with_masks() -> None:
    model = model_of("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py")
    for head in model.roi_head.bbox_head:  # the heads of the Swin paper
        head.update(type="Shared4Conv1FCBBoxHead", norm_cfg=dict(type="MMSyncBN"), reg_class_agnostic=False)
    with DefaultScope.overwrite_default_scope("mmdet"):
        found = analyze(model, (800, 1280))
    assert found.parameters / 1e6 == pytest.approx(82, abs=0.6)
    assert found.total / 1e9 == pytest.approx(739, rel=0.02)


def kinds() -> Iterator[str]:
    """One config per kind of detector, neck and heads: the one with the shortest name of each family."""
    seen = set()
    for family in sorted(path for path in ZOO.iterdir() if path.is_dir() and path.name != "_base_"):
        for path in sorted(family.glob("*.py"), key=lambda path: (len(path.name), path.name)):
            text = path.read_text()
            if "_base_" not in text and "model = " not in text:
                continue
            name = f"{family.name}/{path.name}"
            try:
                model = model_of(name)
            except (ImportError, FileNotFoundError):  # of a package or a base config that it needs
                yield name
                break
            except AttributeError:  # it has no model
                continue
            if (kind := _kind(model)) not in seen:
                seen.add(kind)
                yield name
            break


def _kind(model: Any) -> tuple[str, ...]:
    parts = [model, *(model.get(key) for key in ("neck", "rpn_head", "roi_head", "bbox_head", "mask_head", "detector"))]
    parts += [(model.get("roi_head") or {}).get(key) for key in ("bbox_head", "mask_head", "bbox_roi_extractor")]
    parts += [model.get("panoptic_head"), model.backbone.get("dcn") if model.get("backbone") else None]
    return tuple(str(part.get("type")) if isinstance(part, dict) else str(type(part)) for part in parts)


def cannot_be_built(name: str) -> bool:
    """Whether MMDetection itself cannot build a config with the packages that are installed here."""
    try:
        with DefaultScope.overwrite_default_scope("mmdet"):
            MODELS.build(model_of(name))
    except Exception:
        return True
    return False


def line_of(name: str, shape: tuple[int, int] = SHAPE) -> tuple[str, bool]:
    """The result of one config as text, and whether it is right."""
    try:
        found = counted(name, shape)
    except (ImportError, FileNotFoundError, ValueError) as error:
        too_small = "smaller than kernel" in str(error) or "greater than actual input size" in str(error)
        if too_small and shape == SHAPE:  # the smallest maps
            return line_of(name, (512, 512))
        return f"{name}: {str(error).splitlines()[0]}", "is a tracker" in str(error) or cannot_be_built(name)
    line = f"{name}: {found.parameters / 1e6:.2f} M parameters, {found.total / 1e9:.2f} G multiply-adds"
    line += f", without {', '.join(found.not_counted)}" if found.not_counted else ""
    expected = by_pytorch(name, shape)
    return f"{line}; {expected / 1e9:.2f} G by PyTorch", 0.999 * expected <= found.total <= 1.35 * expected


@pytest.mark.long
def test_the_whole_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ZOO.parent)  # from where some configs name their teacher's
    lines, wrong = [], []
    for name in kinds():
        line, right = line_of(name)
        print(line, flush=True)
        lines.append(line)
        wrong += [] if right else [line]
    assert not wrong, "\n".join(wrong)
    assert sum("multiply-adds" in line for line in lines) >= 60


def test_what_is_no_detector_is_named(tool: Tool) -> None:
    name = "qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py"
    status, _, error = tool("analysis_tools/get_complexity.py", ZOO / name)
    assert status == 2
    assert "QDTrack is a tracker: count its detector" in error.splitlines()[-1]


def test_the_tool_says_what_is_not_counted(tool: Tool) -> None:
    name = "yolact/yolact_r50_1xb8-55e_coco.py"
    arguments = ("analysis_tools/get_complexity.py", ZOO / name, "--shape", 64)
    assert "yolact_r50_1xb8-55e_coco: not counted: mask_head.segm_branch" in tool(*arguments)[1]
    assert tool(*arguments, "--format", "csv")[1].splitlines()[1].endswith(",mask_head.segm_branch")
