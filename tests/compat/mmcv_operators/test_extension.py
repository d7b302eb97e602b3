"""The stand-ins for mmcv's operators give what the compiled operators give."""

import ctypes
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mmcv.ops
import pytest
import torch
from mmcv_without_operators import MMCV, needs_compiled, needs_torchvision
from torch import Tensor

# The project's criterion is 10,000 random cases per operator; a hundred take seconds.
CASES = [100, pytest.param(10_000, marks=pytest.mark.long)]


class Draw:
    """Random values, which depend only on the seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, *options: Any) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def boxes(self, count: int) -> Tensor:
        """Boxes of any size, or on a coarse grid, where some overlaps equal thresholds and boxes are equal or empty."""
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
    """A function that calls mmcv on random cases with the compiled operators and with the stand-ins, and compares."""
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
    """mmcv's own kernels of the focal loss, which exist only for GPUs, compiled for the CPU."""
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
