"""The checks of the code say the same, whatever else lies in the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

HELPERS = sorted(path.stem for path in (REPOSITORY / "tests" / "helpers").glob("*.py"))


@pytest.mark.parametrize("folders", [[], HELPERS], ids=["a fresh clone", "with folders"])
def test_the_order_of_imports_does_not_depend_on_folders_beside_them(folders: list[str], tmp_path: Path) -> None:
    """make demo makes work_dirs/, which is a helper's name, too: it must not become a package of this project."""
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(REPOSITORY / "tests" / "evaluation", tmp_path / "tests" / "evaluation")
    for name in folders:
        (tmp_path / name).mkdir()
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "I", "."]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
