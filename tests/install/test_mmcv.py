"""How mmcv is installed."""

import pytest
from installer import operators, output, settings
from installer.commands import Commands
from installer.environment import Environment
from installer.mmcv import Mmcv
from installer.packages import Packages
from installer_stand_ins import FACTS
from places import REPOSITORY


class Machine:
    """An installation of mmcv whose pip, compiler and check of the operators are stand-ins, and its build."""

    def __init__(self, chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen.venv.mkdir()
        (chosen.cache / "wheels").mkdir(parents=True)
        self.environment = Environment(chosen)
        commands = Commands(self.environment, steps=5)
        packages = Packages(commands)
        self.mmcv = Mmcv(commands, packages, lambda: None)
        self.wheel = operators.Wheel.for_facts(chosen.cache, "mmcv==2.1.0", FACTS, plain=False)
        self.done: list[str] = []
        self.fails: dict[bool, str] = {}  # the output of a build that fails; the key is whether it has few units
        self.problems: list[str | None] = []  # what each check of the operators finds
        monkeypatch.setattr(self.environment, "versions", lambda *names: {})
        monkeypatch.setattr(packages, "constraints", lambda: settings.CONSTRAINTS)
        monkeypatch.setattr(packages, "install", lambda: self.done.append("packages"))
        monkeypatch.setattr(commands, "pip", lambda *arguments, **options: self.done.append(f"pip {arguments[0]}"))
        monkeypatch.setattr(operators, "problem", lambda environment, gpu=None: self.problems.pop(0))
        monkeypatch.setattr(operators, "prepare", lambda wheel, *rest: self)

    def start(self, few: bool, keep_open: tuple[int, ...]) -> output.Job:
        self.done.append("few" if few else "plain")
        script = f"printf '%s' \"$0\"; exit {int(few in self.fails)}"
        return output.Job(("sh", "-c", script, self.fails.get(few, "")), self.environment.settings.log, REPOSITORY)

    def finish(self) -> None:
        self.wheel.folder.mkdir(parents=True)
        (self.wheel.folder / "mmcv.whl").touch()
        self.done.append("kept")

    def install(self) -> list[str]:
        self.done.clear()
        self.mmcv.install_compiled(self.wheel, FACTS)
        return self.done


@pytest.fixture
def machine(chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(chosen, monkeypatch)


def test_mmcv_is_compiled_once_while_the_other_packages_are_installed(machine: Machine) -> None:
    machine.problems = [None, None]
    assert machine.install() == ["few", "packages", "kept", "pip install"]
    assert machine.install() == ["packages", "pip install"]


def test_mmcv_with_operators_replaces_mmcv_without(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same files: if both were installed, uninstalling one would break the other."""
    monkeypatch.setattr(machine.environment, "versions", lambda *names: {"mmcv-lite": "2.1.0"})
    machine.problems = [None]
    assert machine.install() == ["few", "packages", "kept", "pip uninstall", "pip install"]


def test_units_that_do_not_compile_are_compiled_file_by_file(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.problems = [None]
    machine.fails = {True: "unit_0.cpp: error: redefinition of 'x'"}
    assert machine.install() == ["few", "packages", "plain", "kept", "pip install"]
    assert "do not compile in few units here; compiling them file by file" in capsys.readouterr().out


def test_a_cause_that_both_ways_of_compiling_would_meet_ends_the_set_up(machine: Machine) -> None:
    machine.fails = {True: "c++: fatal error: Killed signal terminated program cc1plus"}
    with pytest.raises(SystemExit, match="MAX_JOBS=1"):
        machine.install()
    assert machine.done == ["few", "packages"]
    assert machine.wheel.find() is None


def test_a_kept_wheel_that_does_not_work_is_compiled_again(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.problems = [None, "ImportError: undefined symbol: _ZN3c106detail", None]
    machine.install()
    assert machine.install() == ["packages", "pip install", "few", "kept", "pip install"]
    assert "the kept mmcv does not work here (these operators were compiled against another PyTorch)" in (
        capsys.readouterr().out
    )


def test_operators_that_do_not_work_are_not_kept(machine: Machine) -> None:
    machine.problems = ["ImportError: libGL.so.1: cannot open shared object file"]
    with pytest.raises(SystemExit, match=r"mmcv's operators do not work: (.|\n)*opencv-python-headless"):
        machine.install()
    assert machine.wheel.find() is None
