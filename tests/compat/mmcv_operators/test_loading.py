"""When the stand-ins for mmcv's operators are used, and when not."""

import importlib
from pathlib import Path

import mmcv.ops
import pytest
from mmcv_without_operators import HAS_COMPILED, MMCV, python

from sa_mmdet.compat import mmcv_operators


def test_operators_without_a_stand_in_are_refused_by_name(bare: Path) -> None:
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


@pytest.mark.long
def test_a_torchvision_that_does_not_import_is_named(bare: Path) -> None:
    (bare / "torchvision" / "ops.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    result = python("import sa_mmdet", bare)
    [error] = [line for line in result.stderr.splitlines() if line.startswith("ImportError: mmcv is installed")]
    assert "does not import: operator torchvision::nms does not exist. Install the torchvision that belongs" in error


def test_compiled_operators_are_left_alone() -> None:
    if not HAS_COMPILED:
        pytest.skip("mmcv is installed without compiled operators")
    assert importlib.import_module("mmcv._ext").__file__ == str(mmcv_operators.compiled(MMCV)[0])
