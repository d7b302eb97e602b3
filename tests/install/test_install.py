"""The script that the Makefile calls, and the Makefile's own targets."""

import ast
import json
import os
import subprocess
import sys

from places import REPOSITORY


def test_an_old_python_prints_a_message_and_not_a_traceback() -> None:
    text = (REPOSITORY / ".ci" / "install.py").read_text()
    old = "import sys; sys.version_info = (3, 8, 18)\n"
    result = subprocess.run([sys.executable, "-c", old + text], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("make install: this is Python 3.8; 3.10 or newer is needed: make install PYTHON=")
    newer_than_python_2 = (ast.JoinedStr, ast.AnnAssign, ast.FunctionDef, ast.NamedExpr)
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, newer_than_python_2)]


def test_pip_installs_nothing_but_this_package_beside_an_existing_mmdetection() -> None:
    """The installed PyTorch, numpy and MMDetection are not replaced."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-build-isolation", "--report", "-"]
    said = subprocess.check_output([*command, str(REPOSITORY)], text=True)
    assert [item["metadata"]["name"] for item in json.loads(said)["install"]] == ["sa_mmdet"]


def planned(*arguments: str) -> str:
    """The commands that make would run; the variables of a make that runs this test do not count."""
    variables = ("VENV", "STACK", "TORCH", "TORCH_ARGS", "OPERATORS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in variables}
    return subprocess.check_output(["make", "-n", *arguments], cwd=REPOSITORY, text=True, env=environment)


def test_make_test_is_what_ci_runs() -> None:
    assert "exec make test" in (REPOSITORY / ".ci" / "run").read_text()
    tools = ("ruff check", "ruff format --check", "mypy", "pytest")
    assert [tool in planned("test").replace('"', "") for tool in tools] == [True] * 4
    assert [tool in planned("test", "TORCH=torch==2.9.1") for tool in tools] == [True, True, False, True]


def test_each_stack_has_its_own_default_environment() -> None:
    assert '".venv-onedl"/bin/python -m pytest' in planned("test", "STACK=onedl")
