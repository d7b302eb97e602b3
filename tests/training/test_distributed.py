"""Two processes over gloo on CPUs, by MMEngine's launcher and wrappers, against one process with both batches."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import user_config
from mmengine.model import BaseModel
from places import MMDETECTION, REPOSITORY
from torch import Tensor, nn
from two_processes import CASES, WORLD, WRAPPERS, batches, made, trained, work


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    spawn: Callable[..., Any] = torch.multiprocessing.spawn
    spawn(work, args=(free_port(), folder), nprocs=WORLD)
    return folder


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_with_both_batches(folder: Path, name: str, wrapper: str) -> None:
    states = [torch.load(folder / f"{name}.{wrapper}.{rank}.pth") for rank in range(WORLD)]
    network = made(name)
    if name == "plain norm":
        # Each process normalises by its own batch: the result is the mean of the gradients of two separate forwards.
        network = SeparateForwards(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    inputs = batches() if name == "plain norm" else batches().flatten(1, 2)
    trained(network, inputs, CASES[name][1])
    changed = 0
    for key, expected in network.state_dict().items():
        if name == "plain norm" and ("running" in key or "tracked" in key):
            continue  # each process has its own
        changed += not torch.equal(before[key], expected)
        for state in states:
            actual = state[key.removeprefix("network.")]
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=key)
    assert changed >= 2  # the head's at least
    assert (changed == 2) == (name == "4 stages frozen")


class SeparateForwards(BaseModel):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        losses = [self.network(batch)["loss"] for batch in inputs]
        return dict(loss=torch.stack(losses).mean())


FSDP = """
runner_type = "FlexibleRunner"
strategy = dict(type="FSDPStrategy", model_wrapper=dict(device_id="cpu"))
"""


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["torchrun", "mim", "slurm", *["torchrun with FSDP"] * (len(WRAPPERS) > 1)])
def test_a_training_of_two_processes_on_real_images(coco128: Path, tmp_path: Path, launcher: str) -> None:
    config = user_config(coco128, tmp_path / "mine.py", FSDP if "FSDP" in launcher else "")
    binaries, port = Path(sys.executable).parent, str(free_port())
    train = [str(REPOSITORY / "tools" / "train.py"), str(config), "--work-dir", str(tmp_path / "run")]
    options = ["--cfg-options", "train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    environment = os.environ | dict(OMP_NUM_THREADS="1", PATH=f"{binaries}:{os.environ['PATH']}")
    commands = [[sys.executable, *train, "--launcher", "slurm", *options]] * 2
    if launcher.startswith("torchrun"):
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
        commands = [[*start, *train, "--launcher", "pytorch", *options]]
    elif launcher == "mim":
        start = [str(binaries / "mim"), "train", MMDETECTION, *train[1:], "--gpus", "2", "--port", port]
        commands = [[*start, "--launcher", "pytorch", *options]]
    else:  # what srun sets
        environment |= dict(SLURM_NTASKS="2", SLURM_NODELIST="localhost", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    processes = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | dict(SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
        )
        for rank, command in enumerate(commands)
    ]
    first, *others = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), (
        first[-3000:] + "".join(others)[-3000:]
    )
    assert f"Distributed launcher: {'slurm' if launcher == 'slurm' else 'pytorch'}" in first
    assert re.search(r"GPU number: 2\b", first)  # MMEngine calls processes GPUs
    assert "[1][4/4]" in first  # 61 images, 8 per process and step
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in first
    saved = tmp_path / "run" / "epoch_1.pth"
    assert saved.is_dir() if "FSDP" in launcher else saved.is_file()  # with FSDP, a folder with one file per process
