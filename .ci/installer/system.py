"""Checks of the machine before anything is downloaded: everything that is missing is reported at once."""

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

NEWEST_TRIED = (3, 14)
FREE_GB = 4  # an environment with PyTorch for CPUs takes 2.5; pip needs more while it unpacks

# For each family of systems the command that installs packages, and those with Python's headers, venv, and a compiler.
_PACKAGES = {
    "debian": ("apt-get install -y", {"headers": "{python}-dev", "venv": "{python}-venv", "compiler": "g++"}),
    "fedora": ("dnf install -y", {"headers": "{python}-devel", "venv": "{python}", "compiler": "gcc-c++"}),
    "suse": ("zypper install -y", {"headers": "{python}-devel", "venv": "{python}", "compiler": "gcc-c++"}),
    "arch": ("pacman -S", {"headers": "python", "venv": "python", "compiler": "gcc"}),
}
_NAMES = {
    "headers": "Python's headers (Python.h)",
    "venv": "Python's modules for virtual environments (venv, ensurepip)",
    "compiler": "a C++ compiler",
}


def family(os_release: Path = Path("/etc/os-release")) -> str:
    """The family of systems that this one belongs to: 'debian' (also if unknown), 'fedora', 'suse' or 'arch'.

    Args:
        os_release: The file that describes the system.
    """
    try:
        text = os_release.read_text()
    except OSError:
        return "debian"
    likes = " ".join(re.findall(r'^ID(?:_LIKE)?="?([^"\n]*)', text, re.MULTILINE))
    known = {"debian": "debian ubuntu", "fedora": "fedora rhel centos", "suse": "suse opensuse", "arch": "arch"}
    return next((name for name, systems in known.items() if set(systems.split()) & set(likes.split())), "debian")


def compiler() -> str:
    """The name of the C++ compiler."""
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


def install_command(missing: list[str]) -> str:
    """The command line that installs what is missing.

    Args:
        missing: Of 'headers', 'venv' and 'compiler'.
    """
    command, packages = _PACKAGES[family()]
    # The packages of Debian's own Python are called python3-..., those of others python3.12-... and so on.
    name = Path(os.path.realpath(sys.executable)).name if Path(sys.executable).name != "python3" else "python3"
    names = dict.fromkeys(packages[key].format(python=name) for key in missing)
    return f"{command} {' '.join(names)}"


def check(settings: Settings, making: bool, compiling: bool, include: Path | None = None) -> None:
    """Exit with a list of everything that is missing, if anything is.

    Args:
        settings: The user's choices; the disk of the environment must have room for it.
        making: Whether the environment does not exist yet.
        compiling: Whether operators may have to be compiled.
        include: The folder of Python's headers; this Python's own if None.
    """
    version = sys.version_info[:2]
    if making and version > NEWEST_TRIED:
        newest = ".".join(map(str, NEWEST_TRIED))
        say(
            f"Python {version[0]}.{version[1]} is newer than {newest}, the newest version that was tested; "
            "make install PYTHON=python3.12 uses another one"
        )
    lines = []
    missing = _missing(making, compiling, include or Path(sysconfig.get_path("include")))
    if missing:
        lines += [f"missing: {_NAMES[key]}" for key in missing]
        if "compiler" in missing and os.environ.get("CXX"):
            lines[-1] += f" (CXX={compiler()} is not found)"
        lines.append(f"install it all: {install_command(missing)}")
        if "compiler" in missing:
            lines.append("or use torchvision's operators, without a compiler: make install OPERATORS=torchvision")
    folder = next(path for path in (settings.venv, *settings.venv.parents) if path.exists())
    free = shutil.disk_usage(folder).free / 2**30
    if making and free < FREE_GB:
        lines.append(f"{free:.1f} GB are free in {folder}, {FREE_GB} GB are needed; VENV=DIR chooses another folder")
    if lines:
        fail("\n  ".join(["this machine is not ready; nothing has been downloaded yet", *lines]))


def jobs(gpu: bool = False) -> int:
    """The number of units to compile at once: as many as there are processors, and memory of 2.5 GB for each.

    Args:
        gpu: Whether some are CUDA units, which take up to 4 GB of memory.
    """
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    processors = len(os.sched_getaffinity(0))
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES")
        free = available_memory() or pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return processors
    return max(1, min(processors, int(free / 2**30 / (4 if gpu else 2.5))))


def available_memory(path: Path = Path("/proc/meminfo")) -> int | None:
    """The memory that new processes can use, in bytes; None if Linux does not report it."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found.group(1)) * 1024 if found else None
