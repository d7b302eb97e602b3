"""Installations that cannot work are refused, and others are not."""

import subprocess
import sys

import mmcv
import mmdet
import mmengine
import pytest

from sa_mmdet import compat


def test_an_old_stack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.check_stack()
    monkeypatch.setattr(mmdet, "__version__", "2.28.2")
    with pytest.raises(ImportError, match=r"needs mmdet >= 3\.0, found 2\.28\.2"):
        compat.check_stack()
    monkeypatch.undo()
    monkeypatch.setattr(mmcv, "__version__", "1.7.0")
    with pytest.raises(ImportError, match=r"needs mmcv >= 2\.0, found 1\.7\.0"):
        compat.check_stack()


@pytest.mark.parametrize(
    ("preparation", "message"),
    [
        ("sys.modules['mmcv._ext'] = None", "mmcv is installed without operators that fit PyTorch"),
        ("sys.modules['mmdet'] = None", "needs mmdet >= 3.0, which is not installed"),
        pytest.param(
            "import mmcv; mmcv.__version__ = '2.3.6'",
            "mmdet does not import: MMCV==2.3.6 is used but incompatible",
            marks=pytest.mark.skipif(not hasattr(mmdet, "mmcv_maximum_version"), reason="the fork has no such gate"),
        ),
    ],
)
def test_importing_on_a_stack_that_cannot_work_says_why(preparation: str, message: str) -> None:
    code = f"import sys; {preparation}; import sa_mmdet"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode
    assert any(line.startswith("ImportError: ") and message in line for line in result.stderr.splitlines())


def test_higher_versions_of_the_fork_are_not_shut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mmdet, mmcv, mmengine):
        monkeypatch.setattr(module, "__version__", "9.9.9")
    compat.check_stack()
