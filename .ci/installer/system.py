"""What the machine must have before anything is downloaded: all that is missing is told at once."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from .output import fail, say
from .settings import Settings

NEWEST_TRIED = (3, 13)
FREE_GB = 4  # PyTorch for CPUs and all else need 2.5; pip unpacks beside them

# The packages of each family of systems: what holds Python's headers, venv, and the compiler.
_PACKAGES = {
    "debian": ("apt-get install -y", {"headers": "{python}-dev", "venv": "{python}-venv", "compiler": "g++"}),
    "fedora": ("dnf install -y", {"headers": "{python}-devel", "venv": "{python}", "compiler": "gcc-c++"}),
    "suse": ("zypper install -y", {"headers": "{python}-devel", "venv": "{python}", "compiler": "gcc-c++"}),
    "arch": ("pacman -S", {"headers": "python", "venv": "python", "compiler": "gcc"}),
}
_NAMES = {
    "headers": "Python's headers (Python.h)",
    "venv": "what makes virtual environments (venv, ensurepip)",
    "compiler": "a C++ compiler",
}


def _family(os_release: Path = Path("/etc/os-release")) -> str:
    """Which of the families above this system is of; Debian's where it is not told."""
    try:
        text = os_release.read_text()
    except OSError:
        return "debian"
    likes = " ".join(re.findall(r'^ID(?:_LIKE)?="?([^"\n]*)', text, re.MULTILINE))
    known = {"debian": "debian ubuntu", "fedora": "fedora rhel centos", "suse": "suse opensuse", "arch": "arch"}
    return next((family for family, names in known.items() if set(names.split()) & set(likes.split())), "debian")


def compiler() -> str:
    return os.environ.get("CXX") or "c++"


def _missing(making: bool, compiling: bool, include: Path) -> list[str]:
    missing = []
    if making and not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        missing.append("venv")
    if compiling and not (include / "Python.h").exists():
        missing.append("headers")
    if compiling and shutil.which(compiler()) is None:
        missing.append("compiler")
    return missing


def _command(missing: list[str]) -> str:
    """The one line that installs it all."""
    command, packages = _PACKAGES[_family()]
    # Debian's own Python is python3; another of its Pythons has packages of its own version.
    name = Path(os.path.realpath(sys.executable)).name if Path(sys.executable).name != "python3" else "python3"
    names = dict.fromkeys(packages[key].format(python=name) for key in missing)
    return f"{command} {' '.join(names)}"


def check(settings: Settings, making: bool, compiling: bool, include: Path | None = None) -> None:
    """Stop with all that is missing.

    Args:
        settings: The environment, whose disk must hold it.
        making: Whether the environment has yet to be made.
        compiling: Whether operators may have to be compiled.
        include: Where Python's headers are; this Python's own by default.
    """
    version = sys.version_info[:2]
    if making and version > NEWEST_TRIED:
        newest = ".".join(map(str, NEWEST_TRIED))
        say(
            f"Python {version[0]}.{version[1]} is newer than {newest}, the newest that this was tried with; "
            "make install PYTHON=python3.12 takes another"
        )
    lines = []
    missing = _missing(making, compiling, include or Path(sysconfig.get_path("include")))
    if missing:
        lines += [f"missing: {_NAMES[key]}" for key in missing]
        if "compiler" in missing and os.environ.get("CXX"):
            lines[-1] += f" (CXX={compiler()} is not found)"
        lines.append(f"install it all: {_command(missing)}")
        if "compiler" in missing:
            lines.append("or do without a compiler, on torchvision's operators: make install OPERATORS=torchvision")
    folder = next(path for path in (settings.venv, *settings.venv.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    if making and free < FREE_GB:
        lines.append(
            f"{free:.1f} GB free in {folder}, {FREE_GB} GB are needed; VENV=DIR puts the environment elsewhere"
        )
    if lines:
        fail("\n  ".join(["this machine lacks something; nothing has been downloaded yet", *lines]))


def jobs(gpu: bool = False) -> int:
    """How many units may be compiled at once: by processors, and by memory, of which one takes up to 2.2 GB.

    Args:
        gpu: Whether there are CUDA's among them, which take up to 4 GB.
    """
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    processors = len(os.sched_getaffinity(0))
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES")
        free = _available_memory() or pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return processors
    return max(1, min(processors, int(free / 2**30 / (4 if gpu else 2.5))))


def _available_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found.group(1)) * 1024 if found else None
