"""SIGTERM that only one of several processes receives stops all of them at the same step, and none is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

from sa_mmdet.untrusted import read_torch

WORLD = 2


def train(folder: Path, runner: str, rank: int, step: int) -> int:
    """Train by torchrun on CPUs until the end or the stop; returns the exit status."""
    helpers = REPOSITORY / "tests" / "helpers"
    program = [str(helpers / "stopped_processes.py"), str(folder), runner, str(rank), str(step)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD}", *program]
    paths = os.pathsep.join([str(REPOSITORY), str(helpers)])
    return subprocess.run(command, env=os.environ | dict(PYTHONPATH=paths), capture_output=True).returncode


def losses(folder: Path) -> list[list[dict[str, float]]]:
    """For each process the losses of each of its starts, by their steps."""
    return [json.loads((folder / f"losses{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.long
@pytest.mark.parametrize("runner", ["Runner", "FlexibleRunner"])
def test_processes_stop_and_continue_together(runner: str, tmp_path: Path) -> None:
    assert train(tmp_path / "whole", runner, 0, -1) == 0
    undisturbed = losses(tmp_path / "whole")
    assert [list(starts[0]) for starts in undisturbed] == [[str(step) for step in range(12)]] * WORLD
    for rank, step in ((1, 4), (0, 5)):
        folder = tmp_path / f"stopped by {rank}"
        assert train(folder, runner, rank, step) != 0
        stopped = read_torch(folder / "stopped.pth")["meta"]
        assert step < stopped["iter"] <= step + 3  # at the next update, since gradients are accumulated
        assert (folder / "last_checkpoint").read_text() == str(folder / "stopped.pth")
        assert train(folder, runner, rank, -1) == 0
        for whole, starts in zip(undisturbed, losses(folder), strict=True):
            assert len(starts) == 2
            assert list(starts[0]) == [str(i) for i in range(stopped["iter"])]
            assert list(starts[1]) == [str(i) for i in range(stopped["iter"], 12)]
            assert {**starts[0], **starts[1]} == whole[0]
