"""Wheels of mmcv with its operators, compiled for the installed PyTorch and kept for other environments.

There is no released wheel of mmcv for a current PyTorch. A wheel compiled here is kept under a name that includes
everything it depends on, so that an environment never gets the wheel of another PyTorch, Python or kind of GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import causes, cuda, mmcv_setup, source, system
from .environment import Environment
from .output import Failed, Job, say

FORMAT = 2  # of kept wheels: increase it when the way of building them changes
SECONDS = {"few": 90, "plain": 1200}  # on two cores

CHECK = """
import importlib.util
assert importlib.util.find_spec("mmcv"), "mmcv is not installed"  # PyTorch takes seconds to import
import torch, mmcv._ext
from mmcv.ops import nms
boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
nms(boxes, scores, 0.5)
if {gpu} and torch.cuda.is_available():
    nms(boxes.cuda(), scores.cuda(), 0.5)
if {gpu}:
    from mmcv.ops import get_compiling_cuda_version
    assert get_compiling_cuda_version() != "not available", "mmcv's operators were compiled for CPUs only"
"""

_BUILD = "import sys; from setuptools.build_meta import __legacy__ as backend; backend.build_wheel(sys.argv[1])"
# Causes of a failed build that another way of compiling would meet too.
_FAIL_EITHER_WAY = {"disk", "memory", "network", "headers", "compiler", "standard", "cuda version", "cuda toolkit"}

Pip = Callable[..., None]


class Wheel:
    """A kept wheel, which need not exist yet.

    Args:
        folder: The folder that contains it.
        gpu: Whether its operators are for GPUs.
    """

    def __init__(self, folder: Path, gpu: bool) -> None:
        self.folder, self.gpu = folder, gpu
        self.lock = folder.with_name(f"{folder.name}.lock")

    @classmethod
    def for_facts(cls, cache: Path, package: str, facts: dict[str, Any], plain: bool) -> Wheel:
        """The wheel of a package for one PyTorch, Python and list of GPUs.

        Args:
            cache: The folder in which wheels are kept.
            package: The package and its version, such as 'mmcv==2.1.0'.
            facts: What compiled operators depend on.
            plain: Whether it is compiled file by file.
        """
        gpu = cuda.wanted(facts)
        depends = {key: value for key, value in facts.items() if key not in ("gpus", "headers")}
        depends |= {"package": package, "format": FORMAT, "plain": plain}
        depends |= {"architectures": cuda.architectures(facts) if gpu else None}
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        kind = f"cuda{facts['cuda']}" if gpu else "cpu"
        name = f"{package.replace('==', '-')}-torch{facts['version']}-{facts['python']}-{kind}-{digest}"
        return cls(cache / "wheels" / name, gpu)

    def find(self) -> Path | None:
        """The wheel's file; None if it does not exist yet."""
        return next(iter(self.folder.glob("*.whl")), None)

    def keep(self, built: Path) -> None:
        """Replace this wheel's folder by the folder of a finished build."""
        self.delete()
        built.rename(self.folder)

    def delete(self) -> None:
        """Delete the wheel, if it exists."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Build:
    """Compiles a wheel of mmcv, in the background.

    Args:
        wheel: The wheel to make.
        environment: The environment whose Python and PyTorch it is for.
        sdist: mmcv's source distribution.
        variables: Further environment variables of the compiler.
    """

    def __init__(self, wheel: Wheel, environment: Environment, sdist: Path, variables: Mapping[str, str]) -> None:
        self.wheel, self._environment, self._sdist, self._variables = wheel, environment, sdist, variables
        self._folder = wheel.folder.with_name(f"{wheel.folder.name}.building")

    def start(self, few: bool, keep_open: tuple[int, ...]) -> Job:
        """Unpack the sources and start to compile them; what an earlier, interrupted build left is deleted first.

        Args:
            few: Whether to compile in few units, or file by file.
            keep_open: File descriptors that the compiler keeps open.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        tree = source.unpack(self._sdist, self._folder / "source")
        (self._folder / "wheel").mkdir()
        environment = {**os.environ, **self._variables, mmcv_setup.FEW: "1" if few else "0"}
        environment["MAX_JOBS"] = str(system.jobs(self.wheel.gpu))
        command = (str(self._environment.python), "-c", _BUILD, str(self._folder / "wheel"))
        return Job(command, self._environment.settings.log, tree, environment, keep_open)

    def finish(self) -> None:
        """Keep the wheel that the job has made, and delete the sources."""
        self.wheel.keep(self._folder / "wheel")
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(self._sdist.parent, ignore_errors=True)


def wheel_for(environment: Environment, constraints: Path, facts: dict[str, Any]) -> Wheel:
    """The wheel of mmcv for an environment.

    Args:
        environment: The environment.
        constraints: The file with mmcv's version.
        facts: What compiled operators depend on.
    """
    settings = environment.settings
    package = pinned(settings.packages["mmcv"], constraints)
    return Wheel.for_facts(settings.cache, package, facts, settings.operators == "plain")


def prepare(wheel: Wheel, environment: Environment, constraints: Path, facts: dict[str, Any], pip: Pip) -> Build:
    """Download the sources, and find the CUDA compiler, that compiling a wheel needs.

    Args:
        wheel: The wheel to make.
        environment: The environment that it is for.
        constraints: The file with mmcv's version.
        facts: What compiled operators depend on.
        pip: Runs pip.
    """
    sdist = _download(wheel, environment, constraints, pip)
    variables: dict[str, str] = {}
    if wheel.gpu:
        found = cuda.toolkit(facts, environment.settings.cache, pip)
        say(f"CUDA {found.version} in {found.home}, for GPUs {cuda.architectures(facts)}")
        variables = cuda.variables(facts, found)
    return Build(wheel, environment, sdist, variables)


def python_only(environment: Environment, constraints: Path, pip: Pip) -> Build:
    """Download the sources for a wheel of mmcv's Python files, without operators."""
    wheel = Wheel(environment.settings.cache / "wheels" / f"without-operators-{os.getpid()}", gpu=False)
    sdist = _download(wheel, environment, constraints, pip)
    return Build(wheel, environment, sdist, {mmcv_setup.NONE: "1", "MMCV_WITH_OPS": "0"})


def _download(wheel: Wheel, environment: Environment, constraints: Path, pip: Pip) -> Path:
    folder = environment.settings.cache / "sources" / wheel.folder.name
    shutil.rmtree(folder, ignore_errors=True)
    return source.fetch(pip, environment.settings.packages["mmcv"], constraints, folder)


def pinned(name: str, constraints: Path) -> str:
    """A package with its version from the constraints, such as 'mmcv==2.1.0'."""
    lines = constraints.read_text().splitlines()
    return next((line.split(";")[0].strip() for line in lines if line.split("==")[0] == name), name)


def fails_either_way(failure: Failed) -> bool:
    """Whether compiling file by file would fail for the same cause as compiling in few units."""
    cause = causes.find(failure.output)
    return cause is not None and cause.name in _FAIL_EITHER_WAY


def problem(environment: Environment, gpu: bool | None = None) -> str | None:
    """Check that mmcv's operators work in an environment; returns None if they do, else the error.

    Args:
        environment: The environment, with or without mmcv.
        gpu: Whether they must be compiled for GPUs; if None, they must where PyTorch finds a GPU or FORCE_CUDA is 1.
    """
    if gpu is None and os.environ.get("FORCE_CUDA") == "1":
        gpu = True
    return environment.problem(CHECK.format(gpu="torch.cuda.is_available()" if gpu is None else gpu))
