"""Data for the tests, made here or from real data sets that environment variables name; and how they run tools."""

import os
import runpy
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: threads would wait for each other's processors
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from places import REPOSITORY, Tool

from sa_mmdet.coco_format import make_shapes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _root(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"the environment variable {variable} does not name the data set's folder")
    return Path(os.environ[variable]).resolve()


@pytest.fixture(scope="session")
def coco128() -> Path:
    """The folder of 128 images of COCO: train2017/ and annotations/instances_train2017.json."""
    return _root("COCO128_ROOT")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of BCCD's images of blood cells: images/ and annotations/instances_{train,val,test}.json."""
    return _root("BCCD_ROOT")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data set with a few images."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, dict(train=16, val=4))
    return root


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tool:
    """A function that runs a tool in this process, which saves the time of importing everything again.

    It takes the tool's path in tools/ and its arguments, and returns exit status, standard output and standard error.
    """

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        status: object = 0
        try:
            runpy.run_path(str(REPOSITORY / "tools" / name), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        if isinstance(status, str):  # Python would print this and exit with status 1
            return 1, captured.out, f"{captured.err}{status}\n"
        return int(str(status or 0)), captured.out, captured.err

    return run
