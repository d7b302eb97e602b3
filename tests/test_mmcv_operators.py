"""The stand-ins for mmcv's operators: against the compiled ones, in detectors, and where they have to step back."""

import ctypes
import importlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mmcv.ops
import pytest
import torch
from places import REPOSITORY
from torch import Tensor

from sa_mmdet.compat import mmcv_operators
from sa_mmdet.compat.mmcv_operators import __main__ as command

MMCV = Path(mmcv.__file__).parent
HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None
HAS_COMPILED = bool(mmcv_operators.compiled(MMCV))
# 10,000 random cases of each operator are the project's bar; a hundred of them take seconds.
CASES = [100, pytest.param(10_000, marks=pytest.mark.long)]

needs_torchvision = pytest.mark.skipif(not HAS_TORCHVISION, reason="torchvision is not installed")
needs_compiled = pytest.mark.skipif(not HAS_COMPILED, reason="mmcv is installed without compiled operators")


class Draw:
    """Random choices, the same for the same seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, *options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def boxes(self, count: int) -> Tensor:
        """Of any size, or on a coarse grid, where overlaps equal thresholds, with duplicates and without an area."""
        low, size = self.uniform(count, 2) * 20, self.uniform(count, 2) * 12 - self.choice(0, 0, 1)
        boxes = torch.cat([low, low + size], dim=1)
        return boxes if self.choice(True, False) else boxes.round()

    def scores(self, count: int) -> Tensor:
        scores = self.uniform(count)
        return scores if self.choice(True, False) else (scores * 4).round() / 4

    def threshold(self) -> float:
        return float(self.choice(0.0, 0.25, 0.3, 0.5, 0.6, 0.7, 1.0, float(self.uniform())))


Case = Callable[[Draw], Callable[[], tuple[Any, ...]]]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Case, float], None]:
    """Runs random cases through mmcv's functions with the compiled operators and with the stand-ins."""
    compiled = importlib.import_module("mmcv._ext")
    stand_ins = importlib.import_module("sa_mmdet.compat.mmcv_operators.extension")
    users = [module for name, module in sys.modules.items() if name.startswith("mmcv.ops.")]
    users = [module for module in users if getattr(module, "ext_module", None) is compiled]

    def run(extension: ModuleType, call: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        for module in users:
            monkeypatch.setattr(module, "ext_module", extension)
        return call()

    def compare(cases: int, case: Case, tolerance: float) -> None:
        for seed in range(cases):
            call = case(Draw(seed))
            expected, actual = run(compiled, call), run(stand_ins, call)
            try:
                torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
            except AssertionError as error:
                raise AssertionError(f"case {seed}: {error}") from error

    return compare


Compare = Callable[[int, Case, float], None]


def nms_case(draw: Draw) -> Callable[[], tuple[Any, ...]]:
    count = draw.integer(0, draw.choice(3, 40, 150))
    boxes, scores, threshold = draw.boxes(count), draw.scores(count), draw.threshold()
    options = dict(
        offset=draw.choice(0, 1),
        score_threshold=draw.choice(0.0, 0.0, 0.25, 0.6),
        max_num=draw.choice(-1, -1, 1, 5, 1000),
    )
    return lambda: mmcv.ops.nms(boxes, scores, threshold, **options)


def batched_nms_case(draw: Draw) -> Callable[[], tuple[Any, ...]]:
    count = draw.integer(1, draw.choice(3, 40, 150))
    boxes, scores = draw.boxes(count), draw.scores(count)
    classes = torch.randint(draw.integer(1, 5), (count,), generator=draw.generator)
    config = dict(type=draw.choice("nms", "nms", "soft_nms"), iou_threshold=draw.threshold())
    config["split_thr"] = draw.choice(10000, 10)
    if draw.choice(True, False):
        config["class_agnostic"] = draw.choice(True, False)
    if config["type"] == "nms":
        config["max_num"] = draw.choice(-1, 3, 100)
    return lambda: mmcv.ops.batched_nms(boxes, scores, classes, config)


def soft_nms_case(draw: Draw) -> Callable[[], tuple[Any, ...]]:
    count = draw.integer(0, draw.choice(3, 40, 100))
    boxes, scores = draw.boxes(count), draw.scores(count)
    options = dict(
        iou_threshold=draw.threshold(),
        sigma=draw.choice(0.1, 0.5, 1.0),
        min_score=draw.choice(0.0, 1e-3, 0.05, 0.3),
        method=draw.choice("naive", "linear", "gaussian"),
        offset=draw.choice(0, 1),
    )
    return lambda: mmcv.ops.soft_nms(boxes, scores, **options)


def nms_match_case(draw: Draw) -> Callable[[], tuple[Any, ...]]:
    count = draw.integer(0, draw.choice(3, 40, 150))
    dets, threshold = torch.cat([draw.boxes(count), draw.scores(count)[:, None]], dim=1), draw.threshold()
    return lambda: tuple(mmcv.ops.nms_match(dets, threshold))


@needs_torchvision
@needs_compiled
@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("case", [nms_case, batched_nms_case, nms_match_case])
def test_the_same_boxes_are_kept(compare: Compare, case: Case, cases: int) -> None:
    compare(cases, case, 0.0)


@needs_torchvision
@needs_compiled
@pytest.mark.parametrize("cases", CASES)
def test_soft_nms_keeps_the_same_boxes(compare: Compare, cases: int) -> None:
    compare(cases, soft_nms_case, 1e-5)


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> tuple[Any, ...]:
    leaves = [value.clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    return (output.detach(), *torch.autograd.grad(output, leaves, grad.to(output)))


def roi_align_case(draw: Draw) -> Callable[[], tuple[Any, ...]]:
    batch, channels, height, width = (draw.integer(1, largest) for largest in (3, 3, 12, 12))
    kind = draw.choice(torch.float32, torch.float32, torch.float64)
    features = draw.normal(batch, channels, height, width).to(kind)
    count, scale = draw.integer(0, 6), draw.choice(1.0, 0.5, 0.25)
    corners = (draw.uniform(count, 2, 2) * 24 - 4).sort(dim=1)[0]  # some reach out of the features
    if draw.choice(True, False):
        corners = corners.round()  # some have no area
    images = torch.randint(batch, (count, 1), generator=draw.generator)
    regions = torch.cat([images, corners.flatten(1) / scale], dim=1).to(kind)
    bins = (draw.integer(1, 7), draw.integer(1, 7))
    options = (bins, scale, draw.integer(0, 3), "avg", draw.choice(True, False))
    grad = draw.normal(count, channels, *bins)
    return lambda: with_gradients(lambda x: mmcv.ops.roi_align(x, regions, *options), [features], grad)


def deformable_case(draw: Draw, modulated: bool) -> Callable[[], tuple[Any, ...]]:
    groups, deform_groups = draw.choice(1, 1, 2), draw.choice(1, 1, 2)
    channels, out_channels = 2 * draw.integer(1, 2), groups * draw.integer(1, 3)
    kernel = (draw.integer(1, 3), draw.integer(1, 3))
    stride, dilation, padding = ((draw.integer(low, 2), draw.integer(low, 2)) for low in (1, 1, 0))
    least = [taps + (taps - 1) * (spread - 1) for taps, spread in zip(kernel, dilation, strict=True)]
    batch, size = draw.integer(1, 3), [taps + draw.integer(0, 6) for taps in least]
    out = [(size[i] + 2 * padding[i] - least[i]) // stride[i] + 1 for i in range(2)]
    taps = deform_groups * kernel[0] * kernel[1]
    x, weight = draw.normal(batch, channels, *size), draw.normal(out_channels, channels // groups, *kernel) / 4
    offset = draw.normal(batch, 2 * taps, *out) * draw.choice(0, 1, 3)
    if draw.choice(True, False):
        offset = offset.round()  # on pixels, where the gradient jumps
    grad = draw.normal(batch, out_channels, *out)
    if not modulated:
        options = (stride, padding, dilation, groups, deform_groups, False, draw.choice(1, batch, 32))
        call = mmcv.ops.deform_conv2d
        return lambda: with_gradients(lambda x, o, w: call(x, o, w, *options), [x, offset, weight], grad)
    mask, bias = draw.uniform(batch, taps, *out), draw.normal(out_channels)
    geometry = (stride, padding, dilation, groups, deform_groups)
    call = mmcv.ops.modulated_deform_conv2d
    if draw.choice(True, False):
        return lambda: with_gradients(
            lambda x, o, m, w, b: call(x, o, m, w, b, *geometry), [x, offset, mask, weight, bias], grad
        )
    return lambda: with_gradients(lambda x, o, m, w: call(x, o, m, w, None, *geometry), [x, offset, mask, weight], grad)


@needs_torchvision
@needs_compiled
@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize(
    "case",
    [
        roi_align_case,
        pytest.param(lambda draw: deformable_case(draw, modulated=False), id="deform_conv2d"),
        pytest.param(lambda draw: deformable_case(draw, modulated=True), id="modulated_deform_conv2d"),
    ],
)
def test_outputs_and_gradients_are_equal(compare: Compare, case: Case, cases: int) -> None:
    compare(cases, case, 1e-5)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """mmcv's own kernels of the focal loss, which it has for GPUs alone, compiled for the CPU."""
    sources = MMCV / "ops" / "csrc" / "common" / "cuda"
    compiler = shutil.which("c++")
    if compiler is None or not sources.is_dir():
        pytest.skip("needs a C++ compiler and the sources that mmcv's packages bring")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "pytorch_cuda_helper.hpp").write_text(
        "#include <algorithm>\n#include <cfloat>\n#include <cmath>\n#include <cstdint>\nusing namespace std;\n"
        "#define __global__ static\n#define CUDA_1D_KERNEL_LOOP(i, n) for (int i = 0; i < (n); ++i)\n"
    )
    functions = "\n".join(
        f"void {way}(int n, const float* x, const int64_t* t, const float* w, float* y, float g, float a, int c) "
        f"{{ sigmoid_focal_loss_{way}_cuda_kernel<float>(n, x, t, w, y, g, a, c); }}"
        for way in ("forward", "backward")
    )
    source, library = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(f'#include "sigmoid_focal_loss_cuda_kernel.cuh"\nextern "C" {{\n{functions}\n}}\n')
    include = [f"-I{folder}", f"-I{sources}"]
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", *include, source, "-o", library], check=True)
    return ctypes.CDLL(str(library))


@needs_torchvision
@pytest.mark.parametrize("cases", CASES)
def test_the_focal_loss_is_that_of_the_kernels_for_gpus(
    kernel: ctypes.CDLL, cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_ins = importlib.import_module("sa_mmdet.compat.mmcv_operators.extension")
    monkeypatch.setattr(sys.modules["mmcv.ops.focal_loss"], "ext_module", stand_ins)
    for seed in range(cases):
        draw = Draw(seed)
        rows, classes = draw.integer(1, 20), draw.integer(1, 8)
        logits = draw.normal(rows, classes) * draw.choice(1, 5, 30, 100)
        weight = draw.uniform(classes) if draw.choice(True, False) else None
        background = weight is None  # with weights mmcv reads beyond their end there
        target = torch.randint(-background, classes + background, (rows,), generator=draw.generator)
        gamma, alpha = draw.choice(2.0, 0.0, 1.5), draw.choice(0.25, 0.5)
        expected = [torch.zeros_like(logits) for _ in range(2)]
        for function, result in zip((kernel.forward, kernel.backward), expected, strict=True):
            pointers = [logits.data_ptr(), target.data_ptr(), 0 if weight is None else weight.data_ptr()]
            function(
                logits.numel(),
                *map(ctypes.c_void_p, [*pointers, result.data_ptr()]),
                ctypes.c_float(gamma),
                ctypes.c_float(alpha),
                classes,
            )
        leaf = logits.clone().requires_grad_()
        loss = mmcv.ops.sigmoid_focal_loss(leaf, target, gamma, alpha, weight, "none")
        [grad] = torch.autograd.grad(loss.sum(), leaf)
        for actual, wanted in zip((loss.detach(), grad), expected, strict=True):
            torch.testing.assert_close(
                actual, wanted, rtol=1e-5, atol=1e-5, msg=f"case {seed}: {actual} is not {wanted}"
            )


def without_operators(folder: Path) -> Path:
    """A folder in which mmcv is as installed without compiled operators, for PYTHONPATH."""
    package = folder / "mmcv"
    package.mkdir(parents=True)
    for path in MMCV.iterdir():
        if not path.name.startswith(("_ext.", "__pycache__")):
            (package / path.name).symlink_to(path)
    return folder


def environment(*folders: Path) -> dict[str, str]:
    given = os.environ.get("PYTHONPATH", "")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, folders), str(REPOSITORY), given])}


def python(code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env=environment(*folders), cwd=folders[0])


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """mmcv without operators, beside a torchvision that imports and has no operators."""
    folder = without_operators(tmp_path / "packages")
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("__version__ = '0.0'\n")
    (folder / "torchvision" / "ops.py").touch()
    return folder


def test_what_has_no_stand_in_is_refused_by_name(bare: Path) -> None:
    code = """
import sa_mmdet, torch, mmcv.ops, mmcv._ext
from mmcv.utils import collect_env

def refusal(function, *arguments):
    try:
        function(*arguments)
    except NotImplementedError as error:
        print(error)

boxes, features = torch.rand(3, 5), torch.rand(1, 1, 8, 8)
refusal(mmcv.ops.nms_rotated, boxes, torch.rand(3), 0.5)
refusal(mmcv.ops.roi_align, features, torch.rand(1, 5), 2, 1.0, 0, "max")
refusal(mmcv.ops.RoIPool(2), features, torch.rand(1, 5))
print(mmcv.ops.soft_nms(torch.tensor([[0, 0, 2, 2.0], [0, 0, 2, 2]]), torch.tensor([0.5, 0.75]), 0.3)[1].tolist())
print(collect_env()["MMCV Compiler"])
print(hasattr(mmcv._ext, "__wrapped__"))
"""
    result = python(code, bare)
    assert result.returncode == 0, result.stderr
    *refusals, kept, compiler, dunder = result.stdout.splitlines()
    assert len(refusals) == 3
    for what, sentence in zip(
        ("its operator nms_rotated", "roi_align with pool_mode='max'", "its operator roi_pool_forward"),
        refusals,
        strict=True,
    ):
        assert sentence.startswith(f"mmcv is installed without compiled operators, and {what} has no stand-in.")
        assert sentence.endswith(f"mmcv=={mmcv.__version__}")
        assert "pip install --no-build-isolation --no-cache-dir " in sentence
    assert kept == "[1]"  # the other one's score fell to 0
    assert compiler == "none, torchvision 0.0 stands in for the compiled operators"
    assert dunder == "False"
    assert "mmcv has no compiled operators. torchvision 0.0 stands in for nms," in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("_ext.py", "raise ImportError('undefined symbol: at_tensor')", "undefined symbol: at_tensor"),
        ("_ext.cpython-39-x86_64-linux-gnu.so", "", "No module named 'mmcv._ext'"),  # for another Python
    ],
)
def test_a_broken_extension_is_not_masked(bare: Path, name: str, content: str, message: str) -> None:
    (bare / "mmcv" / name).write_text(content)
    result = python("import sa_mmdet", bare)
    [error] = [line for line in result.stderr.splitlines() if line.startswith("ImportError: mmcv is installed")]
    assert message in error


def test_torchvision_is_told_of_where_it_does_not_import(bare: Path) -> None:
    (bare / "torchvision" / "ops.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    result = python("import sa_mmdet", bare)
    [error] = [line for line in result.stderr.splitlines() if line.startswith("ImportError: mmcv is installed")]
    assert "does not import: operator torchvision::nms does not exist. Install the torchvision that belongs" in error


def test_compiled_operators_are_left_alone() -> None:
    if not HAS_COMPILED:
        pytest.skip("mmcv is installed without compiled operators")
    assert importlib.import_module("mmcv._ext").__file__ == str(mmcv_operators.compiled(MMCV)[0])


def test_a_file_in_mmcvs_folder_serves_programs_that_import_mmdet_first(bare: Path) -> None:
    file, metadata = bare / "mmcv" / "_ext.py", bare / "mmcv_lite-2.1.0.dist-info"
    metadata.mkdir()
    record = "mmcv/__init__.py,,\nmmcv_lite-2.1.0.dist-info/RECORD,,\n"
    (metadata / "RECORD").write_text(record)

    for _ in range(2):
        command.install(bare / "mmcv")
        assert (metadata / "RECORD").read_text() == record + "mmcv/_ext.py,,\n"  # pip uninstall deletes it, too
    result = python("import mmdet.apis, mmcv.ops, sa_mmdet, mmcv._ext; print(mmcv._ext.nms.__module__)", bare)
    assert result.stdout == "mmcv._ext.suppression\n", result.stderr

    command.remove(bare / "mmcv")
    assert not file.exists()
    assert (metadata / "RECORD").read_text() == record
    with pytest.raises(SystemExit, match=f"there is no {re.escape(str(file))}"):
        command.remove(bare / "mmcv")
    file.write_text("somebody's own")
    with pytest.raises(SystemExit, match="was not written by this command"):
        command.remove(bare / "mmcv")


@needs_compiled
def test_no_file_is_written_beside_compiled_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mmcv_operators", "install"])
    with pytest.raises(SystemExit, match=r"mmcv has compiled operators, .*: there is nothing to stand in for"):
        command.main()
    assert not (MMCV / "_ext.py").exists()


# The paper's detectors, cut down to a few small images and regions of interest.
CONFIG = """
_base_ = "{repository}/configs/{name}"
model = dict(backbone=dict(init_cfg=None, frozen_stages=-1, norm_eval=False))
if "{name}".startswith("retinanet"):
    model.update(test_cfg=dict(score_thr=0.0))
else:
    model.update(
        train_cfg=dict(rpn_proposal=dict(max_per_img=100), rcnn=dict(sampler=dict(num=32))),
        test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0)),
    )
dataset = dict(
    data_root="{root}/",
    ann_file="annotations/instances_train2017.json",
    data_prefix=dict(img="train2017/"),
    indices=8,
    pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask="{name}".startswith("mask")),
        dict(type="Resize", scale=(160, 128), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ],
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="{root}/annotations/instances_train2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
randomness = dict(seed=0)
"""


def run_tool(folder: Path, name: str, *arguments: object, packages: list[Path]) -> None:
    line = [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]
    result = subprocess.run(line, cwd=folder, env=environment(*packages), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert bool(packages) == ("mmcv has no compiled operators" in result.stderr)


def logged(work_dir: Path) -> list[dict[str, float]]:
    [path] = work_dir.glob("*/vis_data/scalars.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_torchvision
@needs_compiled
@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "faster_rcnn/faster-rcnn_sa-r50_fpn_1x_coco.py",
        "mask_rcnn/mask-rcnn_sa-r50_fpn_1x_coco.py",
        "retinanet/retinanet_sa-r50_fpn_1x_coco.py",
    ],
)
def test_the_papers_detectors_train_and_test_as_with_compiled_operators(
    coco128: Path, tmp_path: Path, name: str
) -> None:
    config = tmp_path / "mine.py"
    config.write_text(CONFIG.format(repository=REPOSITORY, name=name, root=coco128))
    runs = {"compiled": [], "stand-ins": [without_operators(tmp_path / "packages")]}
    for work_dir, packages in runs.items():
        run_tool(tmp_path, "train.py", config, "--work-dir", work_dir, packages=packages)
    expected, actual = (logged(tmp_path / work_dir) for work_dir in runs)
    assert len(actual) == len(expected) == 5  # four steps, one validation
    for step, reference in zip(actual[:4], expected[:4], strict=True):
        losses = [key for key in reference if "loss" in key]
        assert {key: step[key] for key in losses} == pytest.approx({key: reference[key] for key in losses}, abs=1e-4)
    checkpoint = tmp_path / "stand-ins" / "epoch_1.pth"
    detections = []
    for work_dir, packages in runs.items():
        out = tmp_path / f"{work_dir}.pkl"
        run_tool(tmp_path, "test.py", config, checkpoint, "--out", out, packages=packages)
        detections.append([image["pred_instances"] for image in pickle.loads(out.read_bytes())])
    for ours, theirs in zip(*detections, strict=True):
        assert len(ours["scores"])
        assert torch.equal(ours["labels"], theirs["labels"])
        assert ours.get("masks") == theirs.get("masks")
        for key in ("bboxes", "scores"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-4)
