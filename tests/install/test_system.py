"""What the machine must have."""

import shutil
from pathlib import Path

import pytest
from installer import settings, system
from places import REPOSITORY


def test_a_python_newer_than_those_tested_is_used_with_a_message(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system.sys, "version_info", (3, 99, 0))
    system.check(chosen, making=True, compiling=False)
    assert "Python 3.99 is newer than 3." in capsys.readouterr().out


def test_everything_that_is_missing_is_reported_at_once(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = system.importlib.util.find_spec
    monkeypatch.setattr(system.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 2**30))
    monkeypatch.setattr(system.sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(system, "family", lambda: "debian")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit) as error:
        system.check(chosen, making=True, compiling=True, include=tmp_path)
    said = str(error.value)
    assert "nothing has been downloaded yet" in said
    assert "missing: Python's headers (Python.h)" in said
    assert "missing: Python's modules for virtual environments (venv, ensurepip)" in said
    assert "missing: a C++ compiler (CXX=no-such-compiler is not found)" in said
    assert "apt-get install -y python3-venv python3-dev g++\n" in said
    assert "make install OPERATORS=torchvision" in said
    assert "1.0 GB are free" in said
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
def test_the_family_of_a_system_is_recognised(tmp_path: Path, release: str, family: str) -> None:
    (tmp_path / "os-release").write_text(release)
    assert system.family(tmp_path / "os-release") == family


def test_the_readmes_package_lists_contain_everything_that_the_set_up_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    monkeypatch.setattr(system.sys, "executable", "/usr/bin/python3")
    for family in ("debian", "fedora"):
        monkeypatch.setattr(system, "family", lambda family=family: family)
        wanted = system.install_command(["venv", "headers", "compiler"]).split()
        [line] = [line for line in readme.splitlines() if line.startswith(f"{wanted[0]} install")]
        assert set(wanted) - {"-y"} <= set(line.split())


def test_the_number_of_compiler_processes_depends_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(system, "available_memory", lambda: 5 * 2**30)
    assert (system.jobs(), system.jobs(gpu=True)) == (2, 1)
    monkeypatch.setattr(system, "available_memory", lambda: 2**29)
    assert system.jobs() == 1
    monkeypatch.setenv("MAX_JOBS", "3")
    assert system.jobs() == 3
