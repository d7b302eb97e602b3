from pathlib import Path

import pytest
from mmcv_without_operators import without_operators


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with mmcv without operators, and a torchvision that imports and has no operators."""
    folder = without_operators(tmp_path / "packages")
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("__version__ = '0.0'\n")
    (folder / "torchvision" / "ops.py").touch()
    return folder
