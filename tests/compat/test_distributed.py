"""SyncBatchNorm on CPUs in half precision, with one process and with two, against batch norm in float64."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.utils import digit_version
from torch import Tensor, nn
from two_processes import WORLD, maps, normalise, normalised

from sa_mmdet.ops.backends import AVAILABLE

HALVES = (torch.float16, torch.bfloat16) if AVAILABLE else (torch.bfloat16,)  # float16 on CPUs came with PyTorch 2.4
# The dtypes of the maps and of the norm: all in half precision, and only the maps, as automatic mixed precision has it.
DTYPES = [(half, norm) for half in HALVES for norm in (half, torch.float32)] + [(torch.float32, torch.float32)]


def assert_close(found: dict[str, Tensor], rank: int, x: Tensor, like: nn.Module) -> None:
    """Compare with batch norm in float64 on the maps of all processes, and the dtypes with those of batch norm."""
    exact: Any = normalised(nn.BatchNorm2d(3).double(), x.flatten(0, 1).double())
    dtypes = normalised(like, x[0])
    for name in ("out", "grad", "running_mean", "running_var"):
        expected = exact[name].unflatten(0, (len(x), -1))[rank] if name in ("out", "grad") else exact[name]
        assert found[name].dtype == dtypes[name].dtype, name
        tolerance = 4 * torch.finfo(found[name].dtype).eps
        bound = tolerance * expected.abs().max().item()
        torch.testing.assert_close(found[name].double(), expected, rtol=tolerance, atol=bound, msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    spawn: Callable[..., Any] = torch.multiprocessing.spawn
    spawn(normalise, args=(port, folder, DTYPES), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("number", range(len(DTYPES)), ids=[f"{x} by {norm}" for x, norm in DTYPES])
def test_two_processes(folder: Path, number: int) -> None:
    dtype, norm_dtype = DTYPES[number]
    for rank in range(WORLD):
        found = torch.load(folder / f"{number}.{rank}.pth")
        assert_close(found, rank, maps().to(dtype), nn.BatchNorm2d(3).to(norm_dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_one_process(dtype: torch.dtype) -> None:
    if dtype == torch.float16 and digit_version(torch.__version__) < digit_version("2.5.0"):
        pytest.skip("PyTorch 2.4's own batch norm is not a number in float16 on CPUs")
    x = maps()[:1].to(dtype)
    assert_close(normalised(nn.SyncBatchNorm(3).to(dtype), x[0]), 0, x, nn.BatchNorm2d(3).to(dtype))
