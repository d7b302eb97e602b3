"""The CUDA compiler that belongs to PyTorch's CUDA version, and the GPUs to build for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .output import fail, say

# From this version on NVIDIA's packages for pip hold the compiler itself; those for CUDA 12 hold parts of it.
_FIRST_WITH_COMPILER = 13
_PARTS = "nvcc,cccl,crt,cudart,nvvm"


class Toolkit(NamedTuple):
    """A CUDA compiler: its home, its version, and folders of headers that it lacks."""

    home: Path
    version: str
    includes: tuple[Path, ...] = ()


def wanted(facts: dict[str, Any]) -> bool:
    """Whether mmcv's operators are to be built for GPUs: those that are here, or on the user's word."""
    return bool(facts["cuda"]) and (bool(facts["gpus"]) or os.environ.get("FORCE_CUDA") == "1")


def architectures(facts: dict[str, Any]) -> str:
    """The GPUs to build for, as PyTorch wants them told."""
    told = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if told:
        return told
    if not facts["gpus"]:
        fail("FORCE_CUDA=1 on a machine without a GPU: name the GPUs to build for, as TORCH_CUDA_ARCH_LIST='8.0;9.0'")
    return ";".join(f"{major}.{minor}" for major, minor in facts["gpus"])


def version_of(home: Path) -> str | None:
    """The version of the CUDA compiler in a toolkit's folder; None if there is none that runs."""
    try:
        text = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else None


def candidates(facts: dict[str, Any]) -> list[Path]:
    """Where a toolkit may lie, the user's word first."""
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
    """The first toolkit that PyTorch accepts, of its own major version, and those of other versions that were seen."""
    major = facts["cuda"].split(".")[0]
    others: list[str] = []
    for home in dict.fromkeys(candidates(facts)):
        version = version_of(home)
        if version is None:
            continue
        if version.split(".")[0] == major:
            return Toolkit(home, version), others
        others.append(f"{version} in {home}")
    return None, others


def from_packages(facts: dict[str, Any], folder: Path, pip: Callable[..., None]) -> Toolkit:
    """NVIDIA's compiler from their packages, put aside in a folder of the cache, not into the environment.

    Args:
        facts: The environment's PyTorch.
        folder: Is made whole, or not at all.
        pip: Runs pip with these arguments.
    """
    headers = tuple(sorted(Path(facts["headers"]).parent.parent.glob("nvidia/*/include")))
    home = next(folder.glob("nvidia/*/bin"), folder / "missing").parent
    if version_of(home) is None:
        aside = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        version = ".".join(facts["cuda"].split(".")[:2])
        pip("install", "--target", str(aside), f"cuda-toolkit[{_PARTS}]=={version}.*")
        for libraries in aside.glob("nvidia/*/lib"):
            for library in libraries.glob("libcudart.so.*"):
                (libraries / "libcudart.so").unlink(missing_ok=True)
                (libraries / "libcudart.so").symlink_to(library.name)
            if not (libraries.parent / "lib64").exists():
                (libraries.parent / "lib64").symlink_to("lib")
        aside.rename(folder)
        home = next(folder.glob("nvidia/*/bin"), folder / "missing").parent
    found = version_of(home)
    if found is None:
        fail(f"NVIDIA's packages for CUDA {facts['cuda']} hold no compiler that runs: {home / 'bin' / 'nvcc'}")
    return Toolkit(home, found, headers)


def toolkit(facts: dict[str, Any], cache: Path, pip: Callable[..., None]) -> Toolkit:
    """The CUDA compiler to build with, or the end with all ways out."""
    found, others = search(facts)
    if found is not None:
        return found
    if int(facts["cuda"].split(".")[0]) >= _FIRST_WITH_COMPILER:
        say(f"no CUDA {facts['cuda']} toolkit on this machine: taking the compiler from NVIDIA's packages")
        return from_packages(facts, cache / f"cuda-{facts['cuda']}-{facts['machine']}", pip)
    seen = f" (seen: {', '.join(others)})" if others else ""
    fail(
        f"PyTorch is built for CUDA {facts['cuda']}, and there is no compiler (nvcc) of that version{seen}. NVIDIA's "
        "packages for pip hold one from CUDA 13 on alone. Ways out:\n"
        f"  -> install CUDA toolkit {facts['cuda']} and set CUDA_HOME\n"
        "  -> a PyTorch for CUDA 13: make install TORCH=torch==2.13.0\n"
        "  -> torchvision's operators in place of mmcv's: make install OPERATORS=torchvision\n"
        "  -> operators for CPUs alone: CUDA_VISIBLE_DEVICES= make install"
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
