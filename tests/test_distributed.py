"""Two processes over gloo, on CPUs, by MMEngine's own launcher and wrappers, against one process with both batches."""

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
from conftest import MMDETECTION, REPOSITORY
from detectors import user_config
from mmdet.registry import MODELS
from mmengine.dist import init_dist
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn

import sa_mmdet  # noqa: F401  (a process of its own needs what it registers and repairs)

WORLD = 2
STEPS = 2
BATCH = 2


class Network(BaseModel):
    """A backbone and a head, with a loss that is a mean over the batch."""

    def __init__(self, **backbone: Any):
        super().__init__()
        options: dict[str, Any] = dict(depth=50, groups=8, base_channels=8, frozen_stages=-1, norm_eval=False)
        self.backbone = MODELS.build(dict(type="SAResNet") | options | backbone)
        self.head = nn.Conv2d(64 if self.backbone.depth == 18 else 256, 3, 1)

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return dict(loss=self.head(self.backbone(inputs)[-1]).square().mean())


# What is trained: the backbone's options, how many steps are one update.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "frozen norm": (dict(norm_eval=True), 1),
    "frozen norm, checkpointed": (dict(norm_eval=True, with_cp=True), 1),
    "frozen norm, two steps an update": (dict(norm_eval=True), 2),
    "synchronised norm": (dict(norm_cfg=dict(type="SyncBN", requires_grad=True)), 1),
    "synchronised norm, depth 18": (dict(depth=18, groups=4, norm_cfg=dict(type="SyncBN", requires_grad=True)), 1),
    "plain norm": (dict(), 1),
    **{f"{stages} stages frozen": (dict(norm_eval=True, frozen_stages=stages), 1) for stages in range(5)},
}
WRAPPERS: dict[str, dict[str, Any]] = {  # with what MMEngine's runner gives the first, whatever the machine
    "MMDistributedDataParallel": dict(device_ids=[0], broadcast_buffers=False),
    "MMFullyShardedDataParallel": dict(device_id=torch.device("cpu")),
}
if "MMFullyShardedDataParallel" not in MODEL_WRAPPERS:
    del WRAPPERS["MMFullyShardedDataParallel"]  # MMEngine has it from PyTorch 2 on


def made(name: str) -> Any:
    torch.manual_seed(0)
    network = Network(**CASES[name][0])
    for parameter in network.parameters():
        if parameter.dim() < 4:
            parameter.data.uniform_(0.1, 0.3)
    network.double()
    network.train()
    return network


def batches() -> Tensor:
    """Steps, processes, N, C, H, W."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, WORLD, BATCH, 3, 64, 64, generator=generator, dtype=torch.float64)


def trained(network: Any, inputs: Tensor, accumulated: int) -> None:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    wrapper = OptimWrapper(torch.optim.SGD(trainable, lr=0.01), accumulative_counts=accumulated)
    wrapper.initialize_count_status(network, 0, STEPS)
    for batch in inputs:
        network.train_step(dict(inputs=batch), wrapper)


def work(rank: int, port: int, folder: Path) -> None:
    """One process: all cases, each one's state or error in a file."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(WORLD))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    init_dist("pytorch", "nccl")
    for name in CASES:
        for wrapper in WRAPPERS:
            network = made(name)
            wrapped = MODEL_WRAPPERS.build(dict(type=wrapper, module=network, **WRAPPERS[wrapper]))
            trained(wrapped, batches()[:, rank], CASES[name][1])
            state = {key.removeprefix("module."): value for key, value in wrapped.state_dict().items()}
            torch.save(state, folder / f"{name}.{wrapper}.{rank}.pth")
    torch.distributed.destroy_process_group()


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
        # Each process norms by its own batch: the mean of both gradients, from forwards apart.
        network = _Apart(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    inputs = batches() if name == "plain norm" else batches().flatten(1, 2)
    trained(network, inputs, CASES[name][1])
    changed = 0
    for key, expected in network.state_dict().items():
        if name == "plain norm" and ("running" in key or "tracked" in key):
            continue  # each process's own
        changed += not torch.equal(before[key], expected)
        for state in states:
            actual = state[key.removeprefix("network.")]
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=key)
    assert changed >= 2  # the head's at least
    assert (changed == 2) == (name == "4 stages frozen")


class _Apart(BaseModel):
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
    said, *others = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said[-3000:] + "".join(others)[-3000:]
    assert f"Distributed launcher: {'slurm' if launcher == 'slurm' else 'pytorch'}" in said
    assert re.search(r"GPU number: 2\b", said)  # which MMEngine says of processes
    assert "[1][4/4]" in said  # 61 images, 8 a process
    assert "Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all" in said
    saved = tmp_path / "run" / "epoch_1.pth"
    assert saved.is_dir() if "FSDP" in launcher else saved.is_file()  # with FSDP, a file a process in it
