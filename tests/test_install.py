"""The set-up, with stand-ins for pip, compilers and machines; test_bare_systems.py runs it on real ones."""

import ast
import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from installer import causes, cuda, mmcv_setup, operators, output, settings, source, system, units
from installer.environment import Environment, Lock
from installer.main import Setup
from places import REPOSITORY

FACTS: dict[str, Any] = dict(
    version="2.13.0+cpu",
    git="abc",
    cuda=None,
    hip=None,
    abi=True,
    python="cpython-311-x86_64-linux-gnu",
    machine="x86_64",
    libc=["glibc", "2.36"],
    gpus=[],
    headers="/nowhere",
)


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    """The choices for an environment that is not there yet, in a folder with a space in its name."""
    for name in ("STACK", "TORCH", "TORCH_ARGS", "OPERATORS", "CXX", "CUDA_HOME", "CUDA_PATH", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("VENV", str(tmp_path / "my env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    return settings.read()


def planned(*arguments: str) -> str:
    """What make would do, asked as if not by a test that make runs itself."""
    made = ("VENV", "STACK", "TORCH", "TORCH_ARGS", "OPERATORS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in made}
    return subprocess.check_output(["make", "-n", *arguments], cwd=REPOSITORY, text=True, env=environment)


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


# What the machine lacks


def test_every_python_gets_a_sentence_and_an_old_one_no_traceback() -> None:
    text = (REPOSITORY / ".ci" / "install.py").read_text()
    old = "import sys; sys.version_info = (3, 8, 18)\n"
    result = subprocess.run([sys.executable, "-c", old + text], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("make install: this is Python 3.8; 3.10 or newer is needed: make install PYTHON=")
    newer_than_python_2 = (ast.JoinedStr, ast.AnnAssign, ast.FunctionDef, ast.NamedExpr)
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, newer_than_python_2)]


def test_a_python_that_is_newer_than_tried_is_told_and_taken(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system.sys, "version_info", (3, 99, 0))
    system.check(chosen, making=True, compiling=False)
    assert "Python 3.99 is newer than 3." in capsys.readouterr().out


def test_all_that_is_missing_is_told_at_once(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = system.importlib.util.find_spec
    monkeypatch.setattr(system.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 2**30))
    monkeypatch.setattr(system.sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(system, "_family", lambda: "debian")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as error:
        system.check(chosen, making=True, compiling=True, include=tmp_path)
    said = str(error.value)
    assert "nothing has been downloaded yet" in said
    assert "missing: Python's headers (Python.h)" in said
    assert "missing: what makes virtual environments (venv, ensurepip)" in said
    assert "missing: a C++ compiler (CXX=no-such-compiler is not found)" in said
    assert "apt-get install -y python3-venv python3-dev g++\n" in said
    assert "make install OPERATORS=torchvision" in said
    assert "1.0 GB free" in said
    assert "4 GB are needed; VENV=DIR" in said


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ('ID=ubuntu\nID_LIKE="debian"', "debian"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "fedora"),
        ("ID=fedora\nVERSION_ID=42", "fedora"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "suse"),
        ("ID=nixos", "debian"),
    ],
)
def test_the_packages_are_those_of_the_system(tmp_path: Path, release: str, family: str) -> None:
    (tmp_path / "os-release").write_text(release)
    assert system._family(tmp_path / "os-release") == family


def test_the_readmes_lines_of_packages_are_those_that_the_set_up_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    monkeypatch.setattr(system.sys, "executable", "/usr/bin/python3")
    for family in ("debian", "fedora"):
        monkeypatch.setattr(system, "_family", lambda family=family: family)
        wanted = system._command(["venv", "headers", "compiler"]).split()
        [line] = [line for line in readme.splitlines() if line.startswith(f"{wanted[0]} install")]
        assert set(wanted) - {"-y"} <= set(line.split())


def test_compiling_takes_as_many_processes_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(system, "_available_memory", lambda: 5 * 2**30)
    assert (system.jobs(), system.jobs(gpu=True)) == (2, 1)
    monkeypatch.setattr(system, "_available_memory", lambda: 2**29)
    assert system.jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "3")
    assert system.jobs() == 3


# Why a step failed


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("sh: 1: c++: not found", "compiler"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'c++'", "compiler"),
        ("pybind.h:12:10: fatal error: Python.h: No such file or directory", "headers"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "memory"),
        ("virtual memory exhausted: Cannot allocate memory", "memory"),
        ("fatal error: error writing to /tmp/ccX.s: No space left on device", "disk"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(Failed to establish a "
            "new connection: [Errno -3] Temporary failure in name resolution)'\nERROR: Could not find a version that "
            "satisfies the requirement torch (from versions: none)\nERROR: No matching distribution found for torch",
            "network",
        ),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "network"),
        ("ImportError: /x/mmcv/_ext.so: undefined symbol: _ZN3c106detail14torchCheckFailE", "another pytorch"),
        ("ImportError: /x/mmcv/_ext.so: undefined symbol: _ZN2at4_ops10zeros_like4callE", "another pytorch"),
        ("ImportError: libxcb.so.1: cannot open shared object file: No such file or directory", "opencv"),
        ("ImportError: libGL.so.1: cannot open shared object file: No such file or directory", "opencv"),
        (
            "ERROR: Ignored the following versions that require a different python version: 0.1 Requires-Python <3.12\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "python",
        ),
        (
            "RuntimeError: The detected CUDA version (12.4) mismatches the version that was used to compile PyTorch "
            "(13.0). Please make sure to use the same CUDA versions.",
            "cuda version",
        ),
        (
            "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
            "cuda toolkit",
        ),
        ("c++: error: unrecognized command-line option '-std=c++20'", "standard"),
    ],
)
def test_causes_are_told_apart(chosen: settings.Settings, said: str, name: str) -> None:
    found = causes.find(f"building\n{said}\nerror: command failed")
    assert found is not None
    assert found.name == name
    chosen.venv.mkdir()
    setup = Setup(chosen)
    with pytest.raises(SystemExit) as error:
        setup.watch(setup.job("sh", "-c", 'printf "%s" "$0"; exit 1', said))
    assert said in str(error.value)
    assert str(error.value).endswith(f"  -> {found.way_out}")
    assert str(chosen.log) in str(error.value)


def test_an_unknown_cause_shows_the_output_and_guesses_nothing() -> None:
    assert causes.find("error: 'x' was not declared in this scope") is None
    assert "->" not in output.explain("error: 'x' was not declared in this scope")


def test_a_killed_compiler_is_told_as_out_of_memory(chosen: settings.Settings) -> None:
    chosen.venv.mkdir()
    setup = Setup(chosen)
    with pytest.raises(SystemExit, match="MAX_JOBS=1"):
        setup.watch(setup.job("sh", "-c", "kill -9 $$"))


# What is shown


def test_a_steps_time_is_shown_on_a_terminal_and_in_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(output, "SAY_AGAIN", 0)
    for stream, expected in ((Terminal(), "\r    0 s of about 1 min 30 s"), (io.StringIO(), "    0 s of about 1 min")):
        progress = output.Progress(2, tmp_path / "log", stream)
        with progress.step("PyTorch", 90):
            progress.watch(output.Job(("sleep", "0.5"), tmp_path / "log", tmp_path))
        said = capsys.readouterr().out
        assert f"==> [1/2] PyTorch: about 1 min 30 s (log: {tmp_path / 'log'})\n" in said
        assert expected in said
        progress.times = [("PyTorch", 61.0), ("nothing", 0.1)]
        assert progress.summary().endswith("(PyTorch 1 min 01 s)")


def test_a_stopped_step_ends_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = output.Progress(1, tmp_path / "log")
    job = output.Job(("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait"), tmp_path / "log", tmp_path)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        progress.watch(job)
    monkeypatch.undo()
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "status")
    ended = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < ended
        time.sleep(0.05)


# Environments


def test_a_stack_that_is_unknown_or_another_than_the_environments(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("STACK", "sidestream"), ("OPERATORS", "some")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(SystemExit, match=f"{name}={value} is unknown: give one of "):
                Setup(settings.read()).check_choices()
    installed = {distribution.name for distribution in importlib.metadata.distributions()}
    [own] = [name for name, packages in settings.STACKS.items() if packages["mmengine"] in installed]
    [other] = settings.STACKS.keys() - {own}
    for stack in (own, other):
        monkeypatch.setenv("STACK", stack)
        environment = Environment(settings.read())
        environment.python = Path(sys.executable)
        refused = pytest.raises(
            SystemExit, match=rf"holds STACK={own}, whose files {other} would write over: .* VENV=DIR"
        )
        with refused if stack == other else contextlib.nullcontext():
            environment.check_stack()
    assert '".venv-onedl"/bin/python -m pytest' in planned("test", "STACK=onedl")


def test_half_an_environment_is_made_anew_and_a_users_is_not_touched(chosen: settings.Settings) -> None:
    environment = Environment(chosen)
    executable(environment.python, "exit 1")
    (chosen.venv / "install.log").write_text("kept")
    with pytest.raises(SystemExit, match=r"my env/bin/python has no pip: install it there, or VENV=DIR"):
        environment.make()
    (chosen.venv / "pyvenv.cfg").touch()
    environment.make()
    assert environment.problem("import pip") is None
    assert (chosen.venv / "install.log").read_text() == "kept"


def test_what_a_kill_left_half_installed_is_installed_anew(
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
    environment.mend()
    assert (whole.exists(), half.exists(), old.exists()) == (True, False, True)
    assert "installed half-1.0.dist-info: installing that anew" in capsys.readouterr().out


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
    assert second.stdout.readline() == "==> another make install is at work on here; waiting until it has finished\n"
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock.descriptor,))
    lock.release()
    time.sleep(0.3)
    assert second.poll() is None
    child.kill()
    child.wait()
    assert second.stdout.readline() == "mine\n"
    second.wait()


def test_an_environment_that_is_ready_is_left_alone(chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen.venv.mkdir()
    chosen.stamp.write_text(Setup(chosen).state())
    monkeypatch.setattr(Environment, "problem", lambda self, code: None)
    Setup(chosen).run()
    assert not chosen.log.exists()
    # Another PyTorch or other operators are asked for: that is another environment.
    for name, value in (("TORCH", "torch==2.9.1"), ("OPERATORS", "plain")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not Setup(settings.read()).ready()


@pytest.mark.parametrize(("version", "old"), [("1.13.0+cu117", True), ("2.2.2", True), ("2.3.0", False)])
def test_pytorch_of_numpy_1_gets_it(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, version: str, old: bool
) -> None:
    versions = {"torch": version, "triton": "2.0.0"}
    monkeypatch.setattr(Environment, "torch_version", lambda self: tuple(map(int, version.split(".")[:2])))
    monkeypatch.setattr(Environment, "versions", lambda self, *names: versions)
    chosen.venv.mkdir()
    lines = Setup(chosen).constraints().read_text().splitlines()
    assert ("numpy<2" in lines) == old
    assert any(line.startswith("numpy==2") for line in lines) != old
    assert "mmengine==0.10.7" in lines
    # No other package may bring another PyTorch, or the Triton of another.
    assert [line for line in lines if line.startswith(("torch==", "triton"))] == [f"torch=={version}", "triton==2.0.0"]


def opencv_setup(chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, problem: str) -> tuple[Setup, list[Any]]:
    asked: list[Any] = []
    setup = Setup(chosen)
    monkeypatch.setattr(setup, "constraints", lambda: Path("constraints.txt"))
    monkeypatch.setattr(setup.environment, "problem", lambda code: problem)
    monkeypatch.setattr(setup, "pip", lambda *arguments, **options: asked.append(arguments))
    return setup, asked


def test_opencv_without_windows_where_the_system_lacks_them(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "Traceback\nImportError: libxcb.so.1: cannot open shared object file: No such file or directory"
    setup, asked = opencv_setup(chosen, monkeypatch, problem)
    setup.replace_opencv(had=False)
    assert [arguments[0] for arguments in asked] == ["uninstall", "install"]
    assert asked[1][-1] == "opencv-python-headless"
    assert "OpenCV without windows, since libxcb.so.1: cannot open" in capsys.readouterr().out
    # A user's own is not taken away, and other faults are not mended so.
    with pytest.raises(SystemExit, match=r"libxcb1"):
        setup.replace_opencv(had=True)
    setup, asked = opencv_setup(chosen, monkeypatch, "ImportError: numpy.core.multiarray failed to import")
    with pytest.raises(SystemExit, match=r"OpenCV does not import: .*multiarray"):
        setup.replace_opencv(had=False)
    assert not asked


# Kept wheels


@pytest.mark.parametrize(
    "other",
    [
        dict(version="2.13.0+cu130"),
        dict(git="def"),
        dict(abi=False),
        dict(python="cpython-312-x86_64-linux-gnu"),
        dict(machine="aarch64"),
        dict(cuda="13.0", gpus=[[9, 0]]),
    ],
)
def test_a_wheel_is_kept_for_its_own_pytorch_python_and_gpus_alone(tmp_path: Path, other: dict[str, Any]) -> None:
    wheel = operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS, plain=False)
    built = tmp_path / "built"
    built.mkdir()
    (built / "mmcv-2.1.0-cp311-cp311-linux_x86_64.whl").touch()
    wheel.folder.parent.mkdir()
    wheel.keep(built)
    same = operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS | {"headers": "/elsewhere"}, plain=False)
    assert same.find() == wheel.folder / "mmcv-2.1.0-cp311-cp311-linux_x86_64.whl"
    assert operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS | other, plain=False).find() is None
    assert operators.Wheel.for_facts(tmp_path, "mmcv==2.0.1", FACTS, plain=False).find() is None
    assert operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS, plain=True).find() is None


def test_wheels_for_other_gpus_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    gpus = [FACTS | dict(cuda="13.0", gpus=gpus) for gpus in ([[8, 0]], [[9, 0]], [[8, 0], [9, 0]])]
    folders = {operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", facts, plain=False).folder for facts in gpus}
    assert len(folders) == 3


class Machine:
    """A set-up whose pip, compiler and check of the operators are stand-ins."""

    def __init__(self, chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen.venv.mkdir()
        (chosen.cache / "wheels").mkdir(parents=True)
        self.setup = Setup(chosen)
        self.wheel = operators.Wheel.for_facts(chosen.cache, "mmcv==2.1.0", FACTS, plain=False)
        self.done: list[str] = []
        self.fails: dict[bool, str] = {}  # a build's output, for few units and not, where it fails
        self.problems: list[str | None] = []  # of the operators, check by check
        monkeypatch.setattr(self.setup.environment, "versions", lambda *names: {})
        monkeypatch.setattr(self.setup, "constraints", lambda: settings.CONSTRAINTS)
        monkeypatch.setattr(self.setup, "install_rest", lambda: self.done.append("rest"))
        monkeypatch.setattr(self.setup, "pip", lambda *arguments, **options: self.done.append(f"pip {arguments[0]}"))
        monkeypatch.setattr(operators, "problem", lambda environment, gpu=None: self.problems.pop(0))
        monkeypatch.setattr(operators, "prepare", lambda wheel, *rest: self)

    def start(self, few: bool, keep_open: tuple[int, ...]) -> output.Job:
        self.done.append("few" if few else "plain")
        script = f"printf '%s' \"$0\"; exit {int(few in self.fails)}"
        return output.Job(("sh", "-c", script, self.fails.get(few, "")), self.setup.settings.log, REPOSITORY)

    def finish(self) -> None:
        self.wheel.folder.mkdir(parents=True)
        (self.wheel.folder / "mmcv.whl").touch()
        self.done.append("kept")

    def install(self) -> list[str]:
        self.done.clear()
        self.setup._with_wheel(self.wheel, FACTS)
        return self.done


@pytest.fixture
def machine(chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(chosen, monkeypatch)


def test_mmcv_is_compiled_beside_the_rest_once_and_then_taken_from_what_was_kept(machine: Machine) -> None:
    machine.problems = [None, None]
    assert machine.install() == ["few", "rest", "kept", "pip install"]
    assert machine.install() == ["rest", "pip install"]


def test_mmcv_with_operators_takes_the_place_of_one_without(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same files: installed over each other, uninstalling one would break the other."""
    monkeypatch.setattr(machine.setup.environment, "versions", lambda *names: {"mmcv-lite": "2.1.0"})
    machine.problems = [None]
    assert machine.install() == ["few", "rest", "kept", "pip uninstall", "pip install"]


def test_a_unit_that_does_not_compile_leads_to_the_plain_build(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.problems = [None]
    machine.fails = {True: "unit_0.cpp: error: redefinition of 'x'"}
    assert machine.install() == ["few", "rest", "plain", "kept", "pip install"]
    assert "do not compile in few units here; compiling them file by file" in capsys.readouterr().out


def test_a_cause_that_the_plain_build_would_meet_too_ends_the_set_up(machine: Machine) -> None:
    machine.fails = {True: "c++: fatal error: Killed signal terminated program cc1plus"}
    with pytest.raises(SystemExit, match="MAX_JOBS=1"):
        machine.install()
    assert machine.done == ["few", "rest"]
    assert machine.wheel.find() is None


def test_a_kept_wheel_that_does_not_work_is_compiled_anew_with_its_cause(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.problems = [None, "ImportError: undefined symbol: _ZN3c106detail", None]
    machine.install()
    assert machine.install() == ["rest", "pip install", "few", "kept", "pip install"]
    assert "the kept mmcv does not work here (these operators were compiled against another PyTorch)" in (
        capsys.readouterr().out
    )


def test_operators_that_do_not_work_are_not_kept(machine: Machine) -> None:
    machine.problems = ["ImportError: libGL.so.1: cannot open shared object file"]
    with pytest.raises(SystemExit, match=r"mmcv's operators do not work: (.|\n)*opencv-python-headless"):
        machine.install()
    assert machine.wheel.find() is None


# The build in few units


def test_units_rename_what_several_files_define_and_drop_their_macros(tmp_path: Path) -> None:
    """Checked by a compiler: helpers, types and constants of one name in several files, and their macros."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "shared.hpp").write_text("#pragma once\ninline int helper(int x) {\n  return x + 100;\n}\n")
    (folder / "a.cpp").write_text(
        "#include <cstdio>\n#define max(a, b) ((a) > (b) ? (a) : (b))\n"
        "int const LIMIT = 0;\nstruct Point {\n  int x;\n};\nint helper(int x) {\n  return x + LIMIT + max(1, 0);\n}\n"
        "int of_a() {\n  return helper(0) + sizeof(Point);\n}\n"
    )
    (folder / "b.cpp").write_text(
        "#include <algorithm>\nint const LIMIT = 1;\ntemplate <typename T>\nstruct Pair;\n"
        "template <>\nstruct Pair<int> {\n  int x;\n};\nstruct Point {\n  char x;\n};\n"
        "template <typename T>\nT helper(const T x) {\n  return std::max(x, 2);\n}\n"
        "int of_b() {\n  return helper<int>(0) + sizeof(Point);\n}\n"
    )
    for name, size in (("c", 1), ("d", 2)):
        (folder / f"{name}.hpp").write_text(f"#pragma once\n#define SIZE {size}\n")
        (folder / f"{name}.cpp").write_text(
            f'#include "shared.hpp"\n#include "{name}.hpp"\n#ifndef GIVEN\n#define GIVEN SIZE\n#endif\n'
            f"int of_{name}() {{\n  return helper(0) + 10 * GIVEN;\n}}\n"
        )
    (folder / "functor.hpp").write_text(
        "#pragma once\ntemplate <typename T>\nstruct Functor {\n  int operator()() const;\n};\n"
    )
    (folder / "e.cpp").write_text('#include "functor.hpp"\nint of_e() {\n  return Functor<int>()();\n}\n')
    (folder / "f.cpp").write_text(
        '#include "functor.hpp"\ntemplate <>\nstruct Functor<int> {\n'
        "  int operator()() const {\n    return 7;\n  }\n};\n"
    )
    (folder / "pybind.cpp").write_text(
        "#include <cstdio>\nint of_a();\nint of_b();\nint of_c();\nint of_d();\nint of_e();\n"
        'int main() {\n  std::printf("%d %d %d %d %d", of_a(), of_b(), of_c(), of_d(), of_e());\n}\n'
    )
    written = units.write(sorted(folder.glob("*.cpp")), [folder], tmp_path / "units", jobs=2)
    assert len(written) == 2
    subprocess.run(["c++", "-std=c++17", *map(str, written), "-o", str(tmp_path / "all")], check=True)
    assert subprocess.check_output([str(tmp_path / "all")], text=True) == "5 3 110 120 7"


def test_kernels_are_shared_out_evenly_and_what_takes_longest_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "CUDA_UNITS", 2)
    sizes = {"big": 900, "middle": 500, "small": 300, "tiny": 100}
    for name, size in sizes.items():
        (tmp_path / f"{name}.cu").write_text("x" * size)
    for name in ("pybind", "one", "two"):
        (tmp_path / f"{name}.cpp").write_text("y" * 10)
    groups = units.plan(sorted(tmp_path.iterdir()), units.Sources([tmp_path]), jobs=2)
    names = [[path.stem for path in group] for group in groups]
    assert names == [["big"], ["middle", "small", "tiny"], ["pybind"], ["one", "two"]]
    monkeypatch.undo()
    assert len(units.plan(sorted(tmp_path.iterdir()), units.Sources([tmp_path]), jobs=1)) == units.CUDA_UNITS + 2


@pytest.mark.parametrize(("needed", "expected"), [(17, "-std=c++17"), (20, "-std=c++20")])
def test_the_standard_is_the_one_that_pytorch_wants(tmp_path: Path, needed: int, expected: str) -> None:
    header = tmp_path / "torch" / "csrc" / "api" / "include" / "torch" / "all.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"#error C++{needed} or later compatible compiler is required to use PyTorch.")
    made: dict[str, Any] = {}
    standard = mmcv_setup.required_standard(tmp_path)
    extension = mmcv_setup.changed(lambda name, sources, **options: made.update(options), standard, few=False)
    extension("mmcv._ext", ["a.cpp"], extra_compile_args={"cxx": ["-std=c++17"], "nvcc": ["", "-std=c++17"]})
    assert made["extra_compile_args"] == {"cxx": [expected, "-w", "-g0"], "nvcc": [expected, "-w"]}


def test_mmcvs_setup_reads_its_version_under_every_python(tmp_path: Path) -> None:
    """As mmcv 2.1.0 does it, which Python 3.13 no longer lets see what exec defined."""
    (tmp_path / "version.py").write_text("__version__ = '2.1.0'\n")
    text = (
        "def get_version():\n    version_file = 'version.py'\n    with open(version_file) as f:\n"
        "        exec(compile(f.read(), version_file, 'exec'))\n    return locals()['__version__']\n\n\n"
        "print(get_version())\n"
    )
    mended = mmcv_setup.mended(text)
    assert mended != text
    assert subprocess.check_output([sys.executable, "-c", mended], cwd=tmp_path, text=True) == "2.1.0\n"


def test_an_sdist_is_unpacked_with_our_setup_before_its_own(tmp_path: Path) -> None:
    tree = tmp_path / "mmcv-2.1.0"
    tree.mkdir()
    (tree / "setup.py").write_text("published")
    archive = shutil.make_archive(str(tmp_path / "mmcv-2.1.0"), "gztar", tmp_path, "mmcv-2.1.0")
    unpacked = source.unpack(Path(archive), tmp_path / "to here")
    assert (unpacked / mmcv_setup.PUBLISHED).read_text() == "published"
    assert (unpacked / "setup.py").read_text() == mmcv_setup.TEXT


# CUDA


def nvcc(home: Path, version: str) -> Path:
    executable(home / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {version}, V{version}.88'")
    return home


def test_the_toolkit_is_that_of_pytorchs_cuda(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = FACTS | dict(cuda="97.1", gpus=[[8, 6], [9, 0]])
    old, new = nvcc(tmp_path / "cuda old", "96.4"), nvcc(tmp_path / "cuda new", "97.0")
    monkeypatch.setenv("CUDA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{new / 'bin'}:{os.environ['PATH']}")
    found, others = cuda.search(facts)
    assert found is not None
    assert (found.home, found.version) == (new, "97.0")
    assert f"96.4 in {old}" in others
    variables = cuda.variables(facts, found)
    assert variables["CUDA_HOME"] == str(new)
    assert variables["TORCH_CUDA_ARCH_LIST"] == "8.6;9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert cuda.variables(facts, found)["TORCH_CUDA_ARCH_LIST"] == "7.5"


def test_without_a_toolkit_nvidias_packages_are_taken_once_and_whole(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "candidates", lambda facts: [])
    asked: list[str] = []

    def pip(*arguments: str) -> None:
        asked.append(arguments[-1])
        home = nvcc(Path(arguments[arguments.index("--target") + 1], "nvidia", "cu97"), "97.2")
        (home / "lib").mkdir()
        (home / "lib" / "libcudart.so.97").touch()

    facts = FACTS | dict(cuda="97.2", gpus=[[9, 0]], headers=str(tmp_path / "site" / "torch" / "include"))
    (tmp_path / "site" / "nvidia" / "cu97" / "include").mkdir(parents=True)
    for _ in range(2):
        found = cuda.toolkit(facts, chosen.cache, pip)
        assert found.version == "97.2"
        assert found.includes == (tmp_path / "site" / "nvidia" / "cu97" / "include",)
        assert (found.home / "lib64" / "libcudart.so").exists()
    assert asked == ["cuda-toolkit[nvcc,cccl,crt,cudart,nvvm]==97.2.*"]


def test_a_cuda_whose_packages_hold_no_compiler_is_told_with_all_ways_out(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "candidates", lambda facts: [nvcc(tmp_path / "other", "13.0")])
    facts = FACTS | dict(cuda="12.8", gpus=[[9, 0]])
    with pytest.raises(SystemExit) as error:
        cuda.toolkit(facts, chosen.cache, lambda *arguments: pytest.fail("nothing is downloaded"))
    said = str(error.value)
    assert f"(seen: 13.0 in {tmp_path / 'other'})" in said
    assert all(way in said for way in ("set CUDA_HOME", "OPERATORS=torchvision", "CUDA_VISIBLE_DEVICES= make install"))


def test_gpus_to_build_for_must_be_told_where_none_is_here(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    facts = FACTS | dict(cuda="13.0")
    assert cuda.wanted(facts)
    assert not cuda.wanted(FACTS)
    with pytest.raises(SystemExit, match=r"name the GPUs to build for, as TORCH_CUDA_ARCH_LIST='8.0;9.0'"):
        cuda.architectures(facts)


def test_pip_installs_this_package_alone_into_an_environment_that_has_mmdetection() -> None:
    """What is there stays: no other PyTorch, numpy or MMDetection comes with it."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-build-isolation", "--report", "-"]
    said = subprocess.check_output([*command, str(REPOSITORY)], text=True)
    assert [item["metadata"]["name"] for item in json.loads(said)["install"]] == ["sa_mmdet"]


def test_make_test_is_what_ci_runs() -> None:
    assert "exec make test" in (REPOSITORY / ".ci" / "run").read_text()
    tools = ("ruff check", "ruff format --check", "mypy", "pytest")
    assert [tool in planned("test").replace('"', "") for tool in tools] == [True] * 4
    assert [tool in planned("test", "TORCH=torch==2.9.1") for tool in tools] == [True, True, False, True]
