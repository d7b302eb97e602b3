"""What two processes over gloo compute. It is a module because each process must import it."""

import os
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.dist import init_dist
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from mmengine.utils import digit_version
from torch import Tensor, nn

import sa_mmdet  # noqa: F401  (registers the models and repairs other libraries in the new process)

WORLD = 2
STEPS = 2
BATCH = 2


class Network(BaseModel):
    """A backbone and a head; the loss is a mean over the batch."""

    def __init__(self, **backbone: Any):
        super().__init__()
        options: dict[str, Any] = dict(depth=50, groups=8, base_channels=8, frozen_stages=-1, norm_eval=False)
        self.backbone = MODELS.build(dict(type="SAResNet") | options | backbone)
        self.head = nn.Conv2d(64 if self.backbone.depth == 18 else 256, 3, 1)

    def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
        return dict(loss=self.head(self.backbone(inputs)[-1]).square().mean())


# For each case the backbone's options, and the number of steps per update.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "frozen norm": (dict(norm_eval=True), 1),
    "frozen norm, checkpointed": (dict(norm_eval=True, with_cp=True), 1),
    "frozen norm, two steps per update": (dict(norm_eval=True), 2),
    "synchronised norm": (dict(norm_cfg=dict(type="SyncBN", requires_grad=True)), 1),
    "synchronised norm, depth 18": (dict(depth=18, groups=4, norm_cfg=dict(type="SyncBN", requires_grad=True)), 1),
    "plain norm": (dict(), 1),
    "attention behind stages": (
        dict(
            type="WithAttention",
            module="SAResNet",
            attention={"layer*": dict(type="SpatialGroupEnhance", groups=8)},
            norm_eval=True,
            frozen_stages=1,
        ),
        1,
    ),
    **{f"{stages} stages frozen": (dict(norm_eval=True, frozen_stages=stages), 1) for stages in range(5)},
}
WRAPPERS: dict[str, dict[str, Any]] = {  # with the arguments that MMEngine's runner passes
    "MMDistributedDataParallel": dict(device_ids=[0], broadcast_buffers=False),
    "MMFullyShardedDataParallel": dict(device_id=torch.device("cpu")),
}
# MMEngine needs PyTorch 2 for it, and PyTorch before 2.2 cannot shard on CPUs (torch.cpu.Stream takes no priority).
if "MMFullyShardedDataParallel" not in MODEL_WRAPPERS or digit_version(torch.__version__) < digit_version("2.2.0"):
    del WRAPPERS["MMFullyShardedDataParallel"]


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
    """The inputs: steps x processes x N x C x H x W."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, WORLD, BATCH, 3, 64, 64, generator=generator, dtype=torch.float64)


def trained(network: Any, inputs: Tensor, accumulated: int) -> None:
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    wrapper = OptimWrapper(torch.optim.SGD(trainable, lr=0.01), accumulative_counts=accumulated)
    wrapper.initialize_count_status(network, 0, STEPS)
    for batch in inputs:
        network.train_step(dict(inputs=batch), wrapper)


def launch(rank: int, port: int) -> None:
    """Let MMEngine launch this process as one of two."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(WORLD))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    init_dist("pytorch", "nccl")


def work(rank: int, port: int, folder: Path) -> None:
    """Run one process: train all cases, and write the state of each to a file."""
    launch(rank, port)
    for name in CASES:
        for wrapper in WRAPPERS:
            network = made(name)
            wrapped = MODEL_WRAPPERS.build(dict(type=wrapper, module=network, **WRAPPERS[wrapper]))
            trained(wrapped, batches()[:, rank], CASES[name][1])
            state = {key.removeprefix("module."): value for key, value in wrapped.state_dict().items()}
            torch.save(state, folder / f"{name}.{wrapper}.{rank}.pth")
    torch.distributed.destroy_process_group()


def maps() -> Tensor:
    """Maps of a detector's size, whose number of positions overflows float16: processes x N x C x H x W."""
    return torch.randn(WORLD, 2, 3, 200, 304, generator=torch.Generator().manual_seed(0)) * 3 + 1


def normalised(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output of a norm, the gradient of its input, and its running statistics, after one training step."""
    x = x.detach().requires_grad_()
    out = norm(x)
    out.to(torch.promote_types(out.dtype, torch.float32)).pow(3).sum().backward()
    assert x.grad is not None
    return dict(out=out.detach(), grad=x.grad, **norm.state_dict())


def normalise(rank: int, port: int, folder: Path, dtypes: list[tuple[torch.dtype, torch.dtype]]) -> None:
    """Run one process: normalise maps of one dtype by a synchronised norm of another, for each pair."""
    launch(rank, port)
    for number, (dtype, norm_dtype) in enumerate(dtypes):
        norm = nn.SyncBatchNorm(3).to(norm_dtype)
        torch.save(normalised(norm, maps()[rank].to(dtype)), folder / f"{number}.{rank}.pth")
    torch.distributed.destroy_process_group()
