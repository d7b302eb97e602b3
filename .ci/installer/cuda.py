"""The CUDA compiler for PyTorch's CUDA version, and the GPUs to compile for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .output import fail, say

# From this version on NVIDIA's pip packages contain the whole compiler; those for CUDA 12 contain parts of it.
_FIRST_WITH_COMPILER = 13
_PARTS = "nvcc,cccl,crt,cudart,nvvm"


class Toolkit(NamedTuple):
    """A CUDA compiler: its folder, its version, and further folders of headers that a build with it needs."""

    home: Path
    version: str
    includes: tuple[Path, ...] = ()


def wanted(facts: dict[str, Any]) -> bool:
    """Whether to compile mmcv's operators for GPUs: if this machine has any, or the user sets FORCE_CUDA=1."""
    return bool(facts["cuda"]) and (bool(facts["gpus"]) or os.environ.get("FORCE_CUDA") == "1")


def architectures(facts: dict[str, Any]) -> str:
    """The compute capabilities to compile for, in the form of PyTorch's TORCH_CUDA_ARCH_LIST."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if requested:
        return requested
    if not facts["gpus"]:
        fail("FORCE_CUDA=1 on a machine without a GPU: name the GPUs to build for, as TORCH_CUDA_ARCH_LIST='8.0;9.0'")
    return ";".join(f"{major}.{minor}" for major, minor in facts["gpus"])


def version_of(home: Path) -> str | None:
    """The version of the CUDA compiler in a toolkit's folder; None if it has no compiler that runs."""
    try:
        text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else None


def _complete(home: Path, version: str, facts: dict[str, Any]) -> Toolkit | None:
    """The toolkit, with PyTorch's own copies of the headers that it lacks; None if a build with it cannot succeed.

    A folder may contain nothing but a script that calls a compiler elsewhere, or the compiler without the libraries.
    """
    if not (home / "include" / "cuda_runtime.h").exists():
        return None
    if (home / "include" / "cusparse.h").exists():  # one of the libraries that PyTorch's headers ask for
        return Toolkit(home, version)
    headers = _headers_of_packages(facts)
    return Toolkit(home, version, headers) if any((folder / "cusparse.h").exists() for folder in headers) else None


def _headers_of_packages(facts: dict[str, Any]) -> tuple[Path, ...]:
    """The headers in the packages of CUDA libraries that PyTorch's wheel depends on."""
    return tuple(sorted(Path(facts["headers"]).parent.parent.glob("nvidia/*/include")))


def candidates(facts: dict[str, Any]) -> list[Path]:
    """Folders that may contain a toolkit; those that the user names come first."""
    found = []
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            found.append(Path(os.environ[variable]))
    on_path = shutil.which("nvcc")
    if on_path:
        found += [Path(on_path).parent.parent, Path(on_path).resolve().parent.parent]
    cuda = facts["cuda"]
    folders = [f"/usr/local/cuda-{cuda}", f"/opt/cuda-{cuda}", "/usr/local/cuda", "/opt/cuda"]
    found += map(Path, folders)
    found += sorted(Path("/usr/local").glob(f"cuda-{cuda.split('.')[0]}.*"), reverse=True)
    return found


def search(facts: dict[str, Any]) -> tuple[Toolkit | None, list[str]]:
    """Find the first toolkit of PyTorch's major CUDA version, and list those before it that do not serve."""
    major = facts["cuda"].split(".")[0]
    others: list[str] = []
    for home in dict.fromkeys(candidates(facts)):
        version = version_of(home)
        if version is None:
            continue
        complete = _complete(home, version, facts) if version.split(".")[0] == major else None
        if complete is not None:
            return complete, others
        others.append(f"{version} in {home}")
    return None, others


def from_packages(facts: dict[str, Any], folder: Path, pip: Callable[..., None]) -> Toolkit:
    """Install NVIDIA's compiler from their pip packages into a folder of the cache, outside of the environment.

    Args:
        facts: What compiled operators depend on.
        folder: The folder to make, complete or not at all.
        pip: Runs pip.
    """
    home = next(folder.glob("nvidia/*/bin"), folder / "missing").parent
    if version_of(home) is None:
        new = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        version = ".".join(facts["cuda"].split(".")[:2])
        pip("install", "--target", str(new), f"cuda-toolkit[{_PARTS}]=={version}.*")
        for libraries in new.glob("nvidia/*/lib"):
            for library in libraries.glob("libcudart.so.*"):
                (libraries / "libcudart.so").unlink(missing_ok=True)
                (libraries / "libcudart.so").symlink_to(library.name)
            if not (libraries.parent / "lib64").exists():
                (libraries.parent / "lib64").symlink_to("lib")
        new.rename(folder)
        home = next(folder.glob("nvidia/*/bin"), folder / "missing").parent
    found = version_of(home)
    if found is None:
        fail(f"NVIDIA's packages for CUDA {facts['cuda']} contain no compiler that runs: {home / 'bin' / 'nvcc'}")
    return Toolkit(home, found, _headers_of_packages(facts))


def toolkit(facts: dict[str, Any], cache: Path, pip: Callable[..., None]) -> Toolkit:
    """Find or install the CUDA compiler; where there is none, exit with all alternatives."""
    found, others = search(facts)
    if found is not None:
        return found
    if int(facts["cuda"].split(".")[0]) >= _FIRST_WITH_COMPILER:
        say(f"no CUDA {facts['cuda']} toolkit on this machine: installing the compiler from NVIDIA's packages")
        return from_packages(facts, cache / f"cuda-{facts['cuda']}-{facts['machine']}", pip)
    seen = f" (seen: {', '.join(others)})" if others else ""
    fail(
        f"PyTorch is built for CUDA {facts['cuda']}, and there is no complete toolkit (nvcc and headers) of that "
        f"version{seen}. NVIDIA's pip packages contain one only from CUDA 13 on. Choose one of:\n"
        f"  -> install CUDA toolkit {facts['cuda']} and set CUDA_HOME\n"
        "  -> a PyTorch for CUDA 13: make install TORCH=torch==2.13.0\n"
        "  -> torchvision's operators instead of mmcv's: make install OPERATORS=torchvision\n"
        "  -> operators for CPUs only: CUDA_VISIBLE_DEVICES= make install"
    )


def variables(facts: dict[str, Any], found: Toolkit) -> dict[str, str]:
    """The environment variables of a build with this compiler."""
    from .mmcv_setup import EXTRA_INCLUDES

    path = os.pathsep.join([str(found.home / "bin"), os.environ.get("PATH", "")])
    return {
        "CUDA_HOME": str(found.home),
        "PATH": path,
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": architectures(facts),
        EXTRA_INCLUDES: os.pathsep.join(map(str, found.includes)),
    }
