"""Which versions are installed."""

from pathlib import Path
from typing import Any

import pytest
from installer import settings
from installer.commands import Commands
from installer.environment import Environment
from installer.packages import Packages


@pytest.mark.parametrize(("version", "old"), [("1.13.0+cu117", True), ("2.2.2", True), ("2.3.0", False)])
def test_an_old_pytorch_gets_numpy_1(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, version: str, old: bool
) -> None:
    versions = {"torch": version, "triton": "2.0.0"}
    monkeypatch.setattr(Environment, "torch_version", lambda self: tuple(map(int, version.split(".")[:2])))
    monkeypatch.setattr(Environment, "versions", lambda self, *names: versions)
    chosen.venv.mkdir()
    lines = Packages(Commands(Environment(chosen), steps=1)).constraints().read_text().splitlines()
    assert ("numpy<2" in lines) == old
    assert any(line.startswith("numpy==2") for line in lines) != old
    assert "mmengine==0.10.7" in lines
    # No package may replace PyTorch or its Triton.
    assert [line for line in lines if line.startswith(("torch==", "triton"))] == [f"torch=={version}", "triton==2.0.0"]


def with_opencv_problem(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, problem: str
) -> tuple[Packages, list[Any]]:
    """Packages in an environment whose OpenCV does not import, and the list of pip's calls."""
    calls: list[Any] = []
    environment = Environment(chosen)
    monkeypatch.setattr(environment, "problem", lambda code: problem)
    commands = Commands(environment, steps=1)
    monkeypatch.setattr(commands, "pip", lambda *arguments, **options: calls.append(arguments))
    packages = Packages(commands)
    monkeypatch.setattr(packages, "constraints", lambda: Path("constraints.txt"))
    return packages, calls


def test_opencv_without_windows_where_the_system_lacks_them(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "Traceback\nImportError: libxcb.so.1: cannot open shared object file: No such file or directory"
    packages, calls = with_opencv_problem(chosen, monkeypatch, problem)
    packages.replace_opencv(had=False)
    assert [arguments[0] for arguments in calls] == ["uninstall", "install"]
    assert calls[1][-1] == "opencv-python-headless"
    assert "OpenCV without windows, because of: libxcb.so.1: cannot open" in capsys.readouterr().out
    # The user's own OpenCV is not replaced, and other errors have other solutions.
    with pytest.raises(SystemExit, match=r"libxcb1"):
        packages.replace_opencv(had=True)
    packages, calls = with_opencv_problem(chosen, monkeypatch, "ImportError: numpy.core.multiarray failed to import")
    with pytest.raises(SystemExit, match=r"OpenCV does not import: .*multiarray"):
        packages.replace_opencv(had=False)
    assert not calls
