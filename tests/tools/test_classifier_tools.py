"""tools/classifiers/ runs MMPretrain's own tools, which a folder with its name stands in for, after this package."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

SAYS = "import sys; print('sa_mmdet' in sys.modules, *sys.argv)"


def run(name: str, *arguments: str, packages: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tools" / "classifiers" / name), *arguments]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(REPOSITORY)])}
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=packages)


@pytest.mark.parametrize("place", ["mmpretrain/.mim/tools", "tools"], ids=["a wheel", "a checkout"])
def test_mmpretrains_own_tool_runs_with_the_arguments(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / "mmpretrain").mkdir(exist_ok=True)
    (tmp_path / "mmpretrain" / "__init__.py").touch()
    script = tmp_path / place / "test.py"
    script.write_text(SAYS)
    found = run("test.py", "config.py", "--out", "results.pkl", packages=tmp_path)
    assert found.stdout == f"True {script} config.py --out results.pkl\n", found.stderr


def test_an_mmpretrain_without_tools_is_named(tmp_path: Path) -> None:
    (tmp_path / "mmpretrain").mkdir()
    (tmp_path / "mmpretrain" / "__init__.py").touch()
    found = run("train.py", packages=tmp_path)
    assert found.returncode == 1
    assert found.stderr.splitlines()[-1].startswith("MMPretrain has no tools/train.py; looked for ")
    assert "Traceback" not in found.stderr
