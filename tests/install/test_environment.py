"""Environments and locks."""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installer import settings
from installer.environment import Environment, Lock
from installer.main import Setup
from installer_stand_ins import executable
from places import REPOSITORY


def test_unknown_choices_and_the_other_stack_are_refused(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("STACK", "sidestream"), ("OPERATORS", "some")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(SystemExit, match=f"{name}={value} is unknown: choose one of "):
                Setup(settings.read()).check_choices()
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    [own] = [name for name, packages in settings.STACKS.items() if packages["mmengine"] in installed]
    [other] = settings.STACKS.keys() - {own}
    for stack in (own, other):
        monkeypatch.setenv("STACK", stack)
        environment = Environment(settings.read())
        environment.python = Path(sys.executable)
        refused = pytest.raises(
            SystemExit, match=rf"contains STACK={own}, whose files {other} would overwrite: .* VENV=DIR"
        )
        with refused if stack == other else contextlib.nullcontext():
            environment.check_stack()


def test_an_incomplete_environment_is_made_again_and_a_users_is_left_alone(chosen: settings.Settings) -> None:
    environment = Environment(chosen)
    executable(environment.python, "exit 1")
    (chosen.venv / "install.log").write_text("kept")
    with pytest.raises(SystemExit, match=r"my env/bin/python has no pip: install it there, or VENV=DIR"):
        environment.make()
    (chosen.venv / "pyvenv.cfg").touch()
    environment.make()
    assert environment.problem("import pip") is None
    assert (chosen.venv / "install.log").read_text() == "kept"


@pytest.mark.long
def test_packages_that_a_killed_pip_left_incomplete_are_removed(
    chosen: settings.Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = Environment(chosen)
    environment.make()
    site = environment.path("purelib")
    whole, half, old = (site / f"{name}-1.0.dist-info" for name in ("whole", "half", "old"))
    for folder in (whole, half, old):
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {folder.name.split('-')[0]}\nVersion: 1.0\n")
    for name in ("RECORD", "INSTALLER"):
        (whole / name).write_text("")
    os.utime(old, (1, 1))
    chosen.unfinished.touch()
    os.utime(chosen.unfinished, (time.time() - 60,) * 2)
    environment.repair()
    assert (whole.exists(), half.exists(), old.exists()) == (True, False, True)
    assert "installed half-1.0.dist-info: installing it again" in capsys.readouterr().out


def test_two_set_ups_at_once(tmp_path: Path) -> None:
    """The second says that it waits, also for what a killed one left running."""
    lock = Lock(tmp_path / "lock", "here")
    code = f"""
import sys; sys.path.insert(0, {str(REPOSITORY / ".ci")!r})
from pathlib import Path
from installer.environment import Lock
Lock(Path({str(tmp_path / "lock")!r}), "here"); print("mine", flush=True)
"""
    second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert second.stdout is not None
    assert second.stdout.readline() == "==> another make install is running for here; waiting until it has finished\n"
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.descriptor,))
    lock.release()
    time.sleep(0.3)
    assert second.poll() is None
    child.kill()
    child.wait()
    assert second.stdout.readline() == "mine\n"
    second.wait()
