"""Nothing outside of a run's own folder is removed, whatever a resumed checkpoint says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.registry import METRICS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

try:
    from mmengine.runner._flexible_runner import FlexibleRunner
except ImportError:
    FlexibleRunner = None


class Numbers(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(inputs=torch.ones(1))


class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, inputs: torch.Tensor, mode: str) -> Any:
        return dict(loss=self.linear(inputs).mean()) if mode == "loss" else [3]


@METRICS.register_module()
class Rising(BaseMetric):
    """Better at each evaluation."""

    value = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: Any) -> dict[str, float]:
        Rising.value += 1
        return dict(score=float(Rising.value))


def train(
    work_dir: Path, hook: Any, epochs: int, number: int, resume: Path | None = None, runner: Any = Runner
) -> None:
    loader = dict(
        batch_size=1,
        num_workers=0,
        dataset=Numbers(),
        collate_fn=dict(type="default_collate"),
        sampler=dict(type="DefaultSampler", shuffle=False),
    )
    runner(
        Toy(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        val_evaluator=dict(type="Rising"),
        val_cfg=dict(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(
                type=hook, interval=1, save_best="score", rule="greater", filename_tmpl="{}.pth", max_keep_ckpts=2
            )
        ),
        resume=resume is not None,
        load_from=None if resume is None else str(resume),
        default_scope="mmdet",
        experiment_name=f"own folder {number} {work_dir.name} {hook}",
        log_level="ERROR",
    ).train()


@pytest.mark.parametrize("hook", ["CheckpointHook", CheckpointHook])
@pytest.mark.parametrize("claimed", ["elsewhere", "run", "run/vis_data", "elsewhere/best_score_epoch_1.pth"])
def test_nothing_elsewhere_is_removed(tmp_path: Path, hook: Any, claimed: str) -> None:
    for folder in ("elsewhere/best_score_epoch_1.pth", "run/vis_data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "kept").touch()
    (tmp_path / "kept.pth").touch()
    train(tmp_path / "first", hook, 1, 1)
    content = torch.load(tmp_path / "first" / "1.pth", weights_only=False)
    content["message_hub"]["runtime_info"].update(
        best_ckpt=str(tmp_path / claimed), keep_ckpt_ids=["../kept", "../kept", "../kept"], best_score=0.0
    )
    torch.save(content, tmp_path / "evil.pth")
    train(tmp_path / "run", hook, 3, 2, tmp_path / "evil.pth")
    assert (tmp_path / "elsewhere/best_score_epoch_1.pth/kept").exists()
    assert (tmp_path / "run/vis_data/kept").exists()
    assert (tmp_path / "kept.pth").exists()
    assert [path.name for path in (tmp_path / "run").glob("best_*")] == ["best_score_3.pth"]  # of its own, the last


def test_a_flexible_runner_removes_and_runs_nothing(tmp_path: Path) -> None:
    if FlexibleRunner is None:
        pytest.skip("FlexibleRunner needs PyTorch 2")
    (tmp_path / "elsewhere").mkdir()
    train(tmp_path / "first", "CheckpointHook", 1, 3, runner=FlexibleRunner)
    content = torch.load(tmp_path / "first" / "1.pth", weights_only=False)
    content["message_hub"]["runtime_info"].update(best_ckpt=str(tmp_path / "elsewhere"), best_score=0.0)
    torch.save(content, tmp_path / "evil.pth")
    Rising.value = 1
    train(tmp_path / "run", "CheckpointHook", 2, 4, tmp_path / "evil.pth", FlexibleRunner)
    assert (tmp_path / "elsewhere").is_dir()
    content["meta"]["config"] = f"import pathlib\npathlib.Path({str(tmp_path / 'trace')!r}).touch()"
    torch.save(content, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="is more than names and literals"):
        train(tmp_path / "run", "CheckpointHook", 2, 5, tmp_path / "evil.pth", FlexibleRunner)
    assert not (tmp_path / "trace").exists()
