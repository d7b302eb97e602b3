"""Set up the environment of the Makefile: PyTorch, mmcv's operators compiled against it, MMDetection, this package.

Run by `make install` with the standard library alone. Does what is missing and nothing else; a second run takes
seconds. The environment variables VENV, STACK, TORCH and TORCH_ARGS are those of the Makefile.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
CONSTRAINTS = REPOSITORY / ".ci" / "constraints.txt"
VENV = Path(os.environ.get("VENV") or ".venv")
PYTHON = VENV.absolute() / "bin" / "python"
LOG = VENV / "install.log"
STAMP = VENV / ".sa_mmdet_installed"
DEFAULT_TORCH = "torch==2.13.0"
# The OpenMMLab packages as their authors left them, and the maintained fork, which provides the same imports.
STACKS = {
    "upstream": dict(mmcv="mmcv", mmengine="mmengine", mmdet="mmdet", mim="openmim==0.3.9"),
    "onedl": dict(mmcv="onedl-mmcv", mmengine="onedl-mmengine", mmdet="onedl-mmdetection", mim="onedl-mim==0.5.1"),
}
STACK = os.environ.get("STACK") or "upstream"
SETUPTOOLS = "setuptools>=77,<82"  # 82 has no pkg_resources, which openmim and mmengine import
# PyTorch before 2.3 is compiled against numpy 1, and imports what setuptools dropped in 70.
OLD_TORCH = (2, 3)
OLD_SETUPTOOLS = "setuptools>=69,<70"
WITH_OLD_TORCH = {"numpy": "numpy<2", "opencv-python": "opencv-python<4.12", "captum": "captum==0.8.0"}
FREE_GB = 4  # PyTorch for CPUs and all else need 2.5; pip unpacks beside them

CHECK_OPERATORS = """
import torch, mmcv._ext
from mmcv.ops import nms
boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
nms(boxes, scores, 0.5)
if torch.cuda.is_available():
    nms(boxes.cuda(), scores.cuda(), 0.5)
"""

# What a failing step's output tells, and the way out.
HINTS = {
    "No space left": "the disk is full: free some space and run make install again",
    "Python.h": "Python's headers are missing: apt-get install python3-dev, or the package of your system",
    "Killed": "the compiler ran out of memory: make install MAX_JOBS=1",
    "CUDA_HOME": "mmcv needs the CUDA toolkit of PyTorch's CUDA version: install it and set CUDA_HOME",
    "CUDA version": "set CUDA_HOME to a toolkit of the CUDA version that PyTorch was built with",
    "libGL": "OpenCV needs libGL: apt-get install libgl1, or the package of your system",
    "No matching distribution": "pip's index has no such package for this Python and machine",
}


def fail(message: str) -> None:
    sys.exit(f"make install: {message}")


def say(message: str) -> None:
    print(f"==> {message}", flush=True)


def run(*arguments: str) -> None:
    """Run a command with its output in the log; explain a failure and stop."""
    with LOG.open("a") as log:
        log.write(f"\n$ {shlex.join(arguments)}\n")
        log.flush()
        start = log.tell()
        code = subprocess.call(arguments, stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY)
    if code:
        output = LOG.read_text(errors="replace")[start:]
        hints = "".join(f"\n  -> {way_out}" for sign, way_out in HINTS.items() if sign in output)
        fail(f"{shlex.join(arguments)} failed, its log is {LOG}\n{output[-3000:]}{hints}")


def pip_install(*arguments: str) -> None:
    run(str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", *arguments)


def works(code: str) -> str | None:
    """None if the environment's Python runs the code, else the last line that it printed."""
    result = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, cwd="/")
    return None if result.returncode == 0 else (result.stderr.strip().splitlines() or ["no output"])[-1]


def environment_path(name: str) -> Path:
    code = f"import sysconfig; print(sysconfig.get_path({name!r}))"
    return Path(subprocess.check_output([PYTHON, "-c", code], text=True).strip())


def check_stack() -> None:
    """Refuse a name that is none, and to put one stack's files over the other's."""
    if STACK not in STACKS:
        fail(f"STACK={STACK} is unknown: give one of {', '.join(STACKS)}")
    for other in STACKS.keys() - {STACK}:
        find = f"import importlib.metadata; importlib.metadata.version({STACKS[other]['mmengine']!r})"
        if PYTHON.exists() and works(find) is None:
            fail(f"{VENV} holds STACK={other}, whose files {STACK} would write over: make ... VENV=DIR for another one")


def make_environment() -> None:
    if PYTHON.exists():
        return
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        fail(f"Python {version}; 3.10 to 3.12 are needed: make install PYTHON=python3.11")
    if subprocess.call([sys.executable, "-c", "import ensurepip, venv"], stderr=subprocess.DEVNULL):
        fail("this Python cannot make virtual environments: apt-get install python3-venv")
    free = shutil.disk_usage(VENV.absolute().parent).free / 2**30
    if free < FREE_GB:
        fail(f"{free:.1f} GB free in {VENV.absolute().parent}, {FREE_GB} GB are needed; VENV=DIR puts it elsewhere")
    say(f"virtual environment {VENV} (Python {version})")
    subprocess.check_call([sys.executable, "-m", "venv", str(VENV)])


def install_torch() -> None:
    wanted = os.environ.get("TORCH", "")
    if not wanted and works("import torch") is None:
        return
    say(f"PyTorch ({wanted or DEFAULT_TORCH})")
    pip_install(wanted or DEFAULT_TORCH, *shlex.split(os.environ.get("TORCH_ARGS", "")))


def install_mmcv() -> None:
    """mmcv has no wheel for today's PyTorch, and pip's cache may hold one compiled against another."""
    if works(CHECK_OPERATORS) is None:
        return
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        fail(f"no C++ compiler ({compiler}): apt-get install g++, or set CXX")
    include = environment_path("include")
    if not (include / "Python.h").exists():
        fail(f"no Python.h in {include}: {HINTS['Python.h']}")
    if works("import torch; assert not torch.cuda.is_available()") and shutil.which("nvcc") is None:
        cuda_home = os.environ.get("CUDA_HOME", "")
        if not Path(cuda_home, "bin", "nvcc").exists():
            fail(f"a GPU is here, but no nvcc: {HINTS['CUDA_HOME']}; CUDA_VISIBLE_DEVICES= builds for the CPU alone")
    say("mmcv and its operators; compiling them takes 5 to 15 minutes the first time")
    raise_standard(compiler)
    arguments = ("--no-build-isolation", "-c", str(constraints()), STACKS[STACK]["mmcv"])
    pip_install(*arguments)
    if works(CHECK_OPERATORS) is not None:
        say("the mmcv that pip had belongs to another PyTorch; compiling it anew")
        pip_install("--force-reinstall", "--no-deps", "--no-cache-dir", *arguments)
    problem = works(CHECK_OPERATORS)
    if problem is not None:
        hints = "".join(f"\n  -> {way_out}" for sign, way_out in HINTS.items() if sign in problem)
        fail(f"mmcv's operators do not work: {problem}{hints}")


def torch_is_old() -> bool:
    # By its metadata: importing PyTorch before numpy is there makes it complain.
    version = subprocess.check_output(
        [PYTHON, "-c", "import importlib.metadata; print(importlib.metadata.version('torch'))"], text=True
    )
    return tuple(map(int, version.split(".")[:2])) < OLD_TORCH


def constraints() -> Path:
    """The versions seen working together, for the PyTorch that is there."""
    if not torch_is_old():
        return CONSTRAINTS
    lines = [WITH_OLD_TORCH.get(line.split("==")[0], line) for line in CONSTRAINTS.read_text().splitlines()]
    path = VENV.absolute() / "constraints.txt"
    path.write_text("\n".join([*lines, ""]))
    return path


def raise_standard(compiler: str) -> None:
    """Give the standard that PyTorch's headers want; mmcv asks for C++17, and of two a compiler takes the last."""
    for headers in environment_path("purelib").glob("torch/include/torch/csrc/api/include/torch/all.h"):
        required = re.search(r"error C\+\+(\d\d)", headers.read_text())
        if required is not None and int(required.group(1)) > 17:
            wrapper = VENV.absolute() / "bin" / "c++"
            command = f'{shlex.quote(str(shutil.which(compiler)))} "$@" -std=c++{required.group(1)}'
            wrapper.write_text(f"#!/bin/sh\nexec {command}\n")
            wrapper.chmod(0o755)
            os.environ["CXX"] = str(wrapper)


def install_rest() -> None:
    lines = (REPOSITORY / "requirements.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    # A user's environment may have the first two from elsewhere, PyTorch for CUDA its own Triton.
    kept = {name for name in ("mmengine", "mmdet", "triton") if works(f"import {name}") is None}
    names = [STACKS[STACK].get(name, name) for name in names if name.split(";")[0] not in kept]
    say("MMDetection and the development tools")
    pip_install("-c", str(constraints()), *names)
    if works("import mim"):
        pip_install("-c", str(constraints()), STACKS[STACK]["mim"])
    # openmim takes it back to one that Python packages of today cannot be built with.
    pip_install(OLD_SETUPTOOLS if torch_is_old() else SETUPTOOLS)
    say("sa_mmdet, editable")
    pip_install("--no-build-isolation", "--no-deps", "-e", str(REPOSITORY))
    # openmim looks for sa_mmdet/.mim beside the package's metadata, where an editable install puts no package.
    link = environment_path("purelib") / "sa_mmdet"
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(REPOSITORY / "sa_mmdet")


def state() -> str:
    """What an installation depends on."""
    digest = hashlib.sha256(f"{STACK} {os.environ.get('TORCH', '')}".encode())
    for path in (Path(__file__), CONSTRAINTS, REPOSITORY / "requirements.txt", REPOSITORY / "setup.py"):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    if STAMP.exists() and STAMP.read_text() == state() and works("import torch, mmcv._ext, mmdet") is None:
        return
    check_stack()
    make_environment()
    LOG.unlink(missing_ok=True)
    pip_install(SETUPTOOLS, "wheel", "ninja", "psutil")
    install_torch()
    if torch_is_old():
        pip_install(OLD_SETUPTOOLS, WITH_OLD_TORCH["numpy"])
    install_mmcv()
    install_rest()
    problem = works("import mim, sa_mmdet")
    if problem is not None:
        fail(f"installed, but does not import: {problem}")
    aside = STAMP.with_suffix(".new")
    aside.write_text(state())
    aside.replace(STAMP)
    say(f"ready: {PYTHON}")


if __name__ == "__main__":
    main()
