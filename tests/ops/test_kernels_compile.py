"""Compile every launch of the kernels for NVIDIA GPUs, on a machine without one.

The code that launches runs on meta tensors of real sizes, so that Triton compiles exactly what a GPU would get: the
same tiles, dtypes, constants and alignments. Triton's interpreter, in which the other tests run, is Python and accepts
what Triton's compiler refuses, such as a variable that changes its shape in a loop.
"""

import collections
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import torch

from sa_mmdet.ops import backends
from sa_mmdet.ops.eval_norm import NO_NORM, EvalNorm

pytestmark = [
    needs.triton,
    pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="Triton's interpreter replaces its compiler"),
]
GROUPS = 64
MODES = ("alone", "residual", "tail")
# The pointwise work of blocks: whether there is an identity, gates for channels, for positions (groups), and a norm of
# the identity.
POINTWISE = {
    "norm and ReLU": (False, False, 0, False),
    "none": (True, False, 0, True),
    "SE": (True, True, 0, False),
    "SGE": (True, False, 64, False),
    "CBAM": (True, True, 1, True),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# N, C, H, W: ResNet-50's maps of images of 800 x 1333, padded to 1344; of 224 x 224; other sizes.
COCO = [(2, 256, 200, 336), (2, 512, 100, 168), (2, 1024, 50, 84), (2, 2048, 25, 42)]
IMAGENET = [(32, 256, 56, 56), (32, 512, 28, 28), (32, 1024, 14, 14), (32, 2048, 7, 7)]
OTHER = [(2, 2048, 25, 41), (1, 128, 1, 1), (3, 384, 91, 97)]
LARGEST_GRID = (2**31 - 1, 65535, 65535)
PROGRAMS = 2 * 132  # two for each multiprocessor of an H100


class StandInDriver:
    """What Triton asks of a driver before a launch."""

    def __init__(self, architecture: int):
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, 32)


class FrontEndDone(Exception):
    """Raised once Triton's own checks of a kernel have passed."""


Launch = Callable[..., None]


@pytest.fixture
def on_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Launch, int], Any]]:
    """Hands launches to a function in place of the GPU."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    def install(launch: Launch, architecture: int = 90) -> Any:
        driver.set_active(StandInDriver(architecture))
        monkeypatch.setattr(JITFunction, "run", lambda self, *args, **options: launch(self, *args, **options))
        return backends.triton

    before = dict(vars(driver))
    yield install
    vars(driver).clear()
    vars(driver).update(before)


def step(kernels: Any, shape: tuple[int, ...], dtype: torch.dtype, last: bool, mode: str) -> None:
    """Run a forward and a backward; ``last`` for the layout channels-last."""
    memory_format = torch.channels_last if last else torch.contiguous_format

    def image() -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)

    channels = shape[1]
    if mode in POINTWISE:
        pointwise_step(image, shape, *POINTWISE[mode])
        return
    x, identity, gradient = image(), None if mode == "alone" else image(), image()
    affine = [torch.empty(channels, device="meta") if mode == "tail" else None for _ in range(2)]
    parameters = torch.empty(6, channels // (2 * GROUPS), device="meta")
    out, mean, rstd = kernels.forward(x, identity, *affine, parameters, GROUPS, 1e-5)
    out = None if mode == "alone" else out
    kernels.backward(gradient, x, out, mean, rstd, *affine, parameters, GROUPS, 1e-5)


def pointwise_step(
    image: Callable[[], torch.Tensor],
    shape: tuple[int, ...],
    residual: bool,
    channel: bool,
    groups: int,
    identity_norm: bool,
) -> None:
    """Run a forward and a backward of norm, gates, addition and ReLU."""

    def norm() -> EvalNorm:
        weight, bias, mean, variance = (torch.empty(shape[1], device="meta") for _ in range(4))
        return EvalNorm(weight, bias, mean, variance, 1e-5)

    kernels: Any = backends.triton_block_end
    gates = (
        torch.empty(shape[:2], device="meta") if channel else None,
        torch.empty((shape[0], groups, *shape[2:]), device="meta") if groups else None,
    )
    inputs = (image(), image() if residual else None, norm(), *gates, norm() if identity_norm else NO_NORM)
    out = kernels.forward(*inputs)
    kernels.backward(image(), out if residual else None, *inputs)


def specialisation(function: Any, args: tuple, options: dict[str, Any]) -> tuple:
    """What makes Triton compile a kernel again."""
    key: list[Any] = [function.fn.__name__, *sorted(options.items())]
    for parameter, argument in zip(function.params, args, strict=False):
        if isinstance(argument, torch.Tensor):
            key.append(argument.dtype)
        elif isinstance(argument, int) and not parameter.do_not_specialize:
            key.append((argument == 1, argument % 16 == 0))
        elif isinstance(argument, int):
            key.append(argument >= 2**31)
    return tuple(key)


@pytest.mark.parametrize(
    ("shapes", "least"),
    [((COCO[3], OTHER[2]), 20), pytest.param((*COCO, *IMAGENET, *OTHER), 50, marks=pytest.mark.long)],
    ids=["some", "all"],
)
def test_triton_accepts_every_launch(
    on_launch: Any, shapes: tuple[tuple[int, ...], ...], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import JITFunction

    compile_kernel, seen = JITFunction.run, set()
    refused: dict[str, str] = {}
    where: tuple = ()

    def stop(*_: Any, **__: Any) -> None:
        raise FrontEndDone

    def launch(function: Any, *args: Any, **options: Any) -> None:
        key = specialisation(function, args, options)
        if key in seen:
            return
        seen.add(key)
        try:
            compile_kernel(function, *args, **{**options, "warmup": True})
        except FrontEndDone:
            return
        except Exception as error:
            refused.setdefault(f"{function.fn.__name__}: {str(error).strip().splitlines()[-1]}", f"first for {where}")

    kernels = on_launch(launch)
    monkeypatch.setattr(CUDABackend, "make_ttir", staticmethod(stop))
    for shape in shapes:
        # Layouts and modes do not depend on the dtype, so some of the maps are enough for each dtype.
        for dtype in DTYPES if shape in (COCO[0], COCO[3], IMAGENET[3]) else DTYPES[:1]:
            for last in (False, True):
                # The pointwise kernels have a tile's size for every kind of map, and little else that differs.
                some = POINTWISE if shape in (COCO[3], *OTHER[1:]) else ()
                for mode in (*MODES, *some):
                    where = (shape, dtype, "channels-last" if last else "contiguous", mode)
                    step(kernels, *where[:2], last, mode)
    assert len(seen) > least
    assert not refused


def launches(on_launch: Any, *arguments: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The kernels and grids of a step."""
    made: list[tuple[str, tuple[int, ...]]] = []
    step(on_launch(lambda function, *_, grid, **__: made.append((function.fn.__name__, grid))), *arguments)
    return made


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", COCO, ids=lambda shape: f"{shape[2]}x{shape[3]}")
def test_few_launches_that_fill_the_machine(
    on_launch: Any, shape: tuple[int, ...], dtype: torch.dtype, batch: int, last: bool
) -> None:
    made = launches(on_launch, (batch, *shape[1:]), dtype, last, "tail")
    names = [name for name, _ in made]
    on_chip = not last and shape[2] * shape[3] <= 4200
    forward, backward = (["_forward_kernel"], ["_backward_kernel", "_vectors_kernel"])
    if not on_chip:
        forward, backward = ["_statistics_kernel", *forward], ["_sums_kernel", *backward]
    assert names == forward + backward
    # Only the gradients of vectors, which have one number per channel, are computed by few programs.
    assert min(grid[0] for name, grid in made if name != "_vectors_kernel") >= PROGRAMS


@pytest.mark.parametrize("mode", POINTWISE)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [COCO[0], COCO[3], IMAGENET[3]], ids=str)
def test_one_launch_each_for_the_pointwise_work(on_launch: Any, shape: tuple[int, ...], last: bool, mode: str) -> None:
    made = launches(on_launch, shape, torch.float16, last, mode)
    assert [name for name, _ in made] == ["_forward_kernel", "_backward_kernel"]
    assert min(grid[0] for _, grid in made) >= PROGRAMS


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("mode", ["tail", "norm and ReLU", "CBAM"])
@pytest.mark.parametrize(
    "shape", [(1, 256, 3000, 3000), (70000, 2048, 7, 7), (66000, 256, 1, 1), (1, 2**18, 1, 1)], ids=str
)
def test_grids_within_cudas_limits(on_launch: Any, shape: tuple[int, ...], mode: str, last: bool) -> None:
    for _, grid in launches(on_launch, shape, torch.float16, last, mode):
        assert all(0 < size <= limit for size, limit in zip(grid, LARGEST_GRID, strict=False))


@pytest.mark.parametrize("shape", [(0, 256, 8, 8), (2, 256, 0, 8), (2, 256, 8, 0)], ids=str)
def test_no_launch_for_an_empty_map(on_launch: Any, shape: tuple[int, ...]) -> None:
    assert launches(on_launch, shape, torch.float32, False, "tail") == []


def test_each_launch_is_on_the_tensors_own_device(on_launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    current = [0]

    class Device:
        def __init__(self, device: torch.device):
            self.index = device.index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: Any) -> None:
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    seen: list[tuple[str, int]] = []
    kernels = on_launch(lambda function, *_, **__: seen.append((function.fn.__name__, current[-1])))
    with FakeTensorMode():
        for positions in (8, 100):
            x, gradient = (torch.empty(2, 256, positions, positions, device="cuda:1") for _ in range(2))
            parameters = torch.empty(6, 2, device="cuda:1")
            out, mean, rstd = kernels.forward(x, x, None, None, parameters, GROUPS, 1e-5)
            kernels.backward(gradient, x, out, mean, rstd, None, None, parameters, GROUPS, 1e-5)
    assert len(seen) == 3 + 5
    assert {device for _, device in seen} == {1}
    assert current == [0]


def resources(cubin: bytes) -> tuple[int, int]:
    """The registers of a thread, and the bytes that it spills to memory."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        found = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", found.stdout + found.stderr)
    assert match, found
    return int(match[1]), int(match[2]) + int(match[3])


@pytest.mark.long
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_machine_code(on_launch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, architecture: int) -> None:
    """No spills, no atomic operations, and loads as wide as the rows' alignment allows."""
    from triton.runtime.jit import JITFunction

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compile_kernel, seen = JITFunction.run, set()
    problems: dict[str, list] = collections.defaultdict(list)
    where: tuple = ()

    def launch(function: Any, *args: Any, **options: Any) -> None:
        key, name = specialisation(function, args, options), function.fn.__name__
        if key in seen:
            return
        seen.add(key)
        kernel = compile_kernel(function, *args, **{**options, "warmup": True})
        registers, spilled = resources(kernel.asm["cubin"])
        if spilled > 16:  # the assembler spills a register or two in some versions
            problems[f"{name}: {spilled} bytes spilled, {registers} registers"].append(where)
        ptx = kernel.asm["ptx"]
        if re.search(r"^\s*(@%p\d+ )?(atom|red)\.", ptx, re.MULTILINE):
            problems[f"{name}: atomic operations, results would not repeat"].append(where)
        if name == "_vectors_kernel":
            return
        (_, _, height, width), dtype, layout = where[:3]
        if re.search(r"(ld|st)\.global\S*\.[bu]16", ptx):
            problems[f"{name}: loads or stores single elements of half precision"].append(where)
        if (layout == "channels-last" or height * width * dtype.itemsize % 16 == 0) and not re.search(
            r"ld\.global\S*\.(v4\.b32|v2\.b64)", ptx
        ):
            problems[f"{name}: no load of 128 bits"].append(where)

    kernels = on_launch(launch, architecture)
    # The machine code for bfloat16 is that for float16 with other conversions, 'residual' is 'tail' without two loads.
    for shape in (*COCO, IMAGENET[2]):
        for dtype in DTYPES[:2]:
            for last in (False, True):
                for mode in ("alone", "tail", *POINTWISE):
                    where = (shape, dtype, "channels-last" if last else "contiguous", mode)
                    step(kernels, shape, dtype, last, mode)
    assert len(seen) > 20
    assert not problems
