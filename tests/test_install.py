import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import REPOSITORY


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up script, for an environment that is not there yet."""
    monkeypatch.setenv("VENV", str(tmp_path / "env"))
    spec = importlib.util.spec_from_file_location("install", REPOSITORY / ".ci" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planned(*arguments: str) -> str:
    """What make would do, asked as if not by a test that make runs itself."""
    made = ("VENV", "STACK", "TORCH", "TORCH_ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in made}
    return subprocess.check_output(["make", "-n", *arguments], cwd=REPOSITORY, text=True, env=environment)


def test_a_python_that_is_too_old_or_too_new(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ((3, 9, 2), (3, 14, 0)):
        monkeypatch.setattr(install.sys, "version_info", version)
        with pytest.raises(SystemExit, match=r"3\.10 to 3\.12 are needed: make install PYTHON="):
            install.make_environment()


def test_a_full_disk(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 2**30))
    with pytest.raises(SystemExit, match=r"1\.0 GB free .* 4 GB are needed; VENV=DIR"):
        install.make_environment()


def test_no_compiler_and_no_headers(install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "works", lambda code: "ModuleNotFoundError: No module named 'mmcv'")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler \(no-such-compiler\): apt-get install g\+\+"):
        install.install_mmcv()
    monkeypatch.setenv("CXX", "sh")
    monkeypatch.setattr(install, "environment_path", lambda name: tmp_path)
    with pytest.raises(SystemExit, match=r"no Python.h in .*: Python's headers are missing"):
        install.install_mmcv()


def test_an_mmcv_of_another_pytorch_is_compiled_anew(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(install, "pip_install", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(install, "works", lambda code: None if len(asked) == 2 else "undefined symbol: _ZN3c10")
    monkeypatch.setattr(install, "environment_path", lambda name: Path(install.sys.prefix))
    monkeypatch.setattr(install, "torch_is_old", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    install.install_mmcv()
    assert [("--force-reinstall" in arguments, "--no-cache-dir" in arguments) for arguments in asked] == [
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize(("version", "old"), [("1.13.0+cu117", True), ("2.2.2", True), ("2.3.0", False)])
def test_pytorch_of_numpy_1_gets_it(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str, old: bool
) -> None:
    monkeypatch.setattr(install.subprocess, "check_output", lambda *arguments, **options: f"{version}\n")
    install.VENV.mkdir()
    lines = install.constraints().read_text().splitlines()
    assert ("numpy<2" in lines) == old
    assert any(line.startswith("numpy==2") for line in lines) != old
    assert "mmengine==0.10.7" in lines


def test_the_compiler_is_told_the_standard_that_pytorch_wants(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "environment_path", lambda name: tmp_path)
    monkeypatch.setenv("CXX", "")
    header = tmp_path / "torch" / "include" / "torch" / "csrc" / "api" / "include" / "torch" / "all.h"
    header.parent.mkdir(parents=True)
    (install.VENV / "bin").mkdir(parents=True)
    header.write_text("#error C++17 or later compatible compiler is required to use PyTorch.")
    install.raise_standard("echo")
    assert not os.environ["CXX"]
    header.write_text("#error C++20 or later compatible compiler is required to use PyTorch.")
    install.raise_standard("echo")
    said = subprocess.check_output([os.environ["CXX"], "-std=c++17", "a b.cpp"], text=True)
    assert said == "-std=c++17 a b.cpp -std=c++20\n"


def test_a_stack_that_is_unknown_or_another_than_the_environments(
    install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "STACK", "sidestream")
    with pytest.raises(SystemExit, match="STACK=sidestream is unknown: give one of upstream, onedl"):
        install.check_stack()
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    [own] = [name for name, packages in install.STACKS.items() if packages["mmengine"] in installed]
    [other] = install.STACKS.keys() - {own}
    monkeypatch.setattr(install, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(install, "STACK", own)
    install.check_stack()
    monkeypatch.setattr(install, "STACK", other)
    with pytest.raises(SystemExit, match=rf"holds STACK={own}, whose files {other} would write over: .* VENV=DIR"):
        install.check_stack()
    assert ".venv-onedl/bin/python -m pytest" in planned("test", "STACK=onedl")


def test_a_failing_step_shows_its_output_and_the_way_out(install: ModuleType) -> None:
    install.VENV.mkdir()
    with pytest.raises(SystemExit) as error:
        install.run("sh", "-c", "echo 'fatal error: Python.h: No such file'; exit 1")
    assert "fatal error: Python.h" in str(error.value)
    assert "-> Python's headers are missing: apt-get install python3-dev" in str(error.value)


def test_an_environment_that_is_ready_is_left_alone(install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    install.VENV.mkdir()
    install.STAMP.write_text(install.state())
    monkeypatch.setattr(install, "works", lambda code: None)
    monkeypatch.setattr(install, "make_environment", lambda: pytest.fail("it was set up again"))
    install.main()
    # Another PyTorch is asked for: that is another environment.
    monkeypatch.setenv("TORCH", "torch==2.9.1")
    with pytest.raises(pytest.fail.Exception):
        install.main()


def test_make_test_is_what_ci_runs() -> None:
    assert "exec make test" in (REPOSITORY / ".ci" / "run").read_text()
    tools = ("ruff check", "ruff format --check", "mypy", "pytest")
    assert [tool in planned("test") for tool in tools] == [True] * 4
    assert [tool in planned("test", "TORCH=torch==2.9.1") for tool in tools] == [True, True, False, True]
