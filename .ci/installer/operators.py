"""mmcv with its operators: compiled against the PyTorch that is there, and kept for the next environment.

mmcv has no wheel for today's PyTorch. A wheel compiled here is kept under a name made of all that it depends on, so
that an environment never gets one of another PyTorch, Python or kind of GPU.
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

FORMAT = 1  # of kept wheels: raise it when they are built in another way
SECONDS = {"few": 90, "plain": 1200}  # on two cores

CHECK = """
import torch, mmcv._ext
from mmcv.ops import nms
boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1)
nms(boxes, scores, 0.5)
if {gpu} and torch.cuda.is_available():
    nms(boxes.cuda(), scores.cuda(), 0.5)
if {gpu}:
    from mmcv.ops import get_compiling_cuda_version
    assert get_compiling_cuda_version() != "not available", "mmcv's operators were compiled for CPUs alone"
"""

_BUILD = "import sys; from setuptools.build_meta import __legacy__ as backend; backend.build_wheel(sys.argv[1])"
# What no other way of compiling helps against.
_HOPELESS = {"disk", "memory", "network", "headers", "compiler", "standard", "cuda version", "cuda toolkit"}

Pip = Callable[..., None]


class Wheel:
    """One kept wheel, which may not be there yet."""

    def __init__(self, folder: Path, gpu: bool) -> None:
        self.folder, self.gpu = folder, gpu
        self.lock = folder.with_name(f"{folder.name}.lock")

    @classmethod
    def for_facts(cls, cache: Path, package: str, facts: dict[str, Any], plain: bool) -> Wheel:
        """The wheel of this package for this PyTorch and Python, and these GPUs."""
        gpu = cuda.wanted(facts)
        depends = {key: value for key, value in facts.items() if key not in ("gpus", "headers")}
        depends |= {"package": package, "format": FORMAT, "plain": plain}
        depends |= {"architectures": cuda.architectures(facts) if gpu else None}
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        kind = f"cuda{facts['cuda']}" if gpu else "cpu"
        name = f"{package.replace('==', '-')}-torch{facts['version']}-{facts['python']}-{kind}-{digest}"
        return cls(cache / "wheels" / name, gpu)

    def find(self) -> Path | None:
        return next(iter(self.folder.glob("*.whl")), None)

    def keep(self, built: Path) -> None:
        """Put a folder with a wheel in the place of this one at once."""
        self.drop()
        built.rename(self.folder)

    def drop(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Build:
    """One way of compiling mmcv, at work beside other steps."""

    def __init__(self, wheel: Wheel, environment: Environment, sdist: Path, variables: Mapping[str, str]) -> None:
        self.wheel, self._environment, self._sdist, self._variables = wheel, environment, sdist, variables
        self._folder = wheel.folder.with_name(f"{wheel.folder.name}.building")

    def start(self, few: bool, keep_open: tuple[int, ...]) -> Job:
        """Unpack the sources and compile them; what an earlier set-up left half-built is removed first."""
        shutil.rmtree(self._folder, ignore_errors=True)
        tree = source.unpack(self._sdist, self._folder / "source")
        (self._folder / "wheel").mkdir()
        environment = {**os.environ, **self._variables, mmcv_setup.FEW: "1" if few else "0"}
        environment["MAX_JOBS"] = str(system.jobs(self.wheel.gpu))
        command = (str(self._environment.python), "-c", _BUILD, str(self._folder / "wheel"))
        return Job(command, self._environment.settings.log, tree, environment, keep_open)

    def finish(self) -> None:
        """Keep the wheel of a job that has ended well."""
        self.wheel.keep(self._folder / "wheel")
        self.clean()

    def clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(self._sdist.parent, ignore_errors=True)


def wheel_for(environment: Environment, constraints: Path, facts: dict[str, Any]) -> Wheel:
    """The wheel that fits this environment."""
    settings = environment.settings
    package = pinned(settings.packages["mmcv"], constraints)
    return Wheel.for_facts(settings.cache, package, facts, settings.operators == "plain")


def prepare(wheel: Wheel, environment: Environment, constraints: Path, facts: dict[str, Any], pip: Pip) -> Build:
    """Fetch what compiling a wheel needs."""
    settings = environment.settings
    downloads = settings.cache / "sources" / wheel.folder.name
    shutil.rmtree(downloads, ignore_errors=True)
    sdist = source.fetch(pip, settings.packages["mmcv"], constraints, downloads)
    variables: dict[str, str] = {}
    if wheel.gpu:
        found = cuda.toolkit(facts, settings.cache, pip)
        say(f"CUDA {found.version} in {found.home}, for GPUs {cuda.architectures(facts)}")
        variables = cuda.variables(facts, found)
    return Build(wheel, environment, sdist, variables)


def without(environment: Environment, constraints: Path, pip: Pip) -> Build:
    """mmcv's Python alone."""
    settings = environment.settings
    wheel = Wheel(settings.cache / "wheels" / f"without-operators-{os.getpid()}", gpu=False)
    downloads = settings.cache / "sources" / wheel.folder.name
    sdist = source.fetch(pip, settings.packages["mmcv"], constraints, downloads)
    return Build(wheel, environment, sdist, {mmcv_setup.NONE: "1", "MMCV_WITH_OPS": "0"})


def pinned(name: str, constraints: Path) -> str:
    """The package with its version as the constraints name it."""
    lines = constraints.read_text().splitlines()
    return next((line.split(";")[0].strip() for line in lines if line.split("==")[0] == name), name)


def hopeless(failure: Failed) -> bool:
    """Whether compiling in another way would fail for the same cause."""
    cause = causes.find(failure.output)
    return cause is not None and cause.name in _HOPELESS


def problem(environment: Environment, gpu: bool | None = None) -> str | None:
    """None if mmcv's operators work, else why not.

    Args:
        environment: Has mmcv, or has not.
        gpu: Whether they must be for GPUs; None where a GPU that PyTorch can use decides, or the user's word.
    """
    if gpu is None and os.environ.get("FORCE_CUDA") == "1":
        gpu = True
    return environment.problem(CHECK.format(gpu="torch.cuda.is_available()" if gpu is None else gpu))
