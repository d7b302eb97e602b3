"""Trainings of a toy network that take a second, with either of MMEngine's runners."""

import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor, nn
from torch.utils.data import Dataset


class Noise(Dataset):
    def __init__(self, length: int = 4) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        legacy = np.random.random_sample()  # noqa: NPY002  (transforms draw from it)
        return dict(inputs=torch.tensor([legacy, random.random(), torch.rand(1).item() + index]))


class Toy(BaseModel):
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.register_buffer("ballast", torch.zeros(size))

    def forward(self, inputs: Tensor, mode: str) -> Any:
        if mode == "predict":
            return [{}]
        return dict(loss=self.linear(inputs + torch.rand(3)).square().mean())


class Score(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(acc=0.5)


class Recorder(Hook):
    """Keeps the losses by their step, and does something at the end of one step or evaluation step."""

    def __init__(self, at: int | None = None, act: Any = None, evaluating: bool = False) -> None:
        self.losses: dict[int, float] = {}
        self.indices: list[int] = []
        self.evaluations: list[int] = []
        self.at, self.act, self.evaluating = at, act, evaluating

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses[runner.iter] = outputs["loss"].item()
        self.indices.append(batch_idx)
        if runner.iter == self.at and not self.evaluating:
            self.act()

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if runner.iter == self.at and self.evaluating:
            self.act()

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        self.evaluations.append(runner.iter)


_names = iter(range(10_000))


def runner(
    work_dir: Path,
    recorder: Recorder,
    *,
    flexible: bool = False,
    train_cfg: dict[str, Any] | None = None,
    size: int = 1,
    length: int = 4,
    workers: int = 0,
    seed: int | None = 3,
    steps_seeded: bool = True,
    infinite: bool = False,
    accumulative_counts: int = 1,
    val_interval: int | None = None,
    resume: bool = False,
    load_from: str | None = None,
    hook: Any = "CheckpointHook",
    launcher: str = "none",
    schedule_end: int = 99,
    log_level: str = "ERROR",
    model: Any = None,
    **checkpoint: Any,
) -> Any:
    """Build a runner that trains the toy network, or another model; momentum and learning rate change each step."""
    torch.manual_seed(0)  # of the first weights
    data: dict[str, Any] = dict(
        batch_size=1,
        num_workers=workers,
        persistent_workers=workers > 0,
        dataset=Noise(length),
        collate_fn=dict(type="default_collate"),
        sampler=dict(type="InfiniteSampler" if infinite else "DefaultSampler", shuffle=True),
    )
    options: dict[str, Any] = {}
    train_cfg = dict(train_cfg or dict(by_epoch=True, max_epochs=3))
    if val_interval is not None:
        train_cfg["val_interval"] = val_interval
        held_out = dict(data, sampler=dict(type="DefaultSampler", shuffle=False))
        options = dict(val_dataloader=held_out, val_cfg={}, val_evaluator=Evaluator(Score()))
    kind = FlexibleRunner if flexible else Runner
    optimizer = dict(type="SGD", lr=0.1, momentum=0.9)
    return kind(
        Toy(size) if model is None else model,
        work_dir=str(work_dir),
        train_dataloader=data,
        train_cfg=train_cfg,
        optim_wrapper=dict(optimizer=optimizer, accumulative_counts=accumulative_counts),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=7),
            dict(type="MultiStepLR", milestones=[1, 2], end=schedule_end, by_epoch=train_cfg.get("by_epoch", False)),
        ],
        default_hooks=dict(checkpoint=dict(checkpoint, type=hook)),
        custom_hooks=[recorder, *([dict(type="SeedSteps")] if steps_seeded else [])],
        randomness=dict(seed=seed),
        resume=resume,
        load_from=load_from,
        launcher=launcher,
        default_scope="mmdet",  # stays when the run has ended
        experiment_name=f"toy{next(_names)}",
        log_level=log_level,
        **options,
    )


def train(work_dir: Path, recorder: Recorder | None = None, **options: Any) -> Recorder:
    """Train the toy network; see :func:`runner`."""
    recorder = Recorder() if recorder is None else recorder
    built = runner(work_dir, recorder, **options)
    try:
        built.train()
    finally:
        for worker in multiprocessing.active_children():
            worker.terminate()  # PyTorch would wait some seconds for those that are loading
    return recorder
