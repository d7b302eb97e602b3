"""What stands in for the trainings and tests of a study: it writes what MMEngine would, at once."""

import json
from pathlib import Path
from typing import Any

from made_up_coco import detections
from mmengine.config import Config

from sa_mmdet.evaluation.evaluators import coco_evaluator, effective_config


def perfect(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects themselves as detections, without those of crowds."""
    keys = ("image_id", "category_id", "bbox")
    return [{key: one[key] for key in keys} | dict(score=0.9) for one in truth["annotations"] if not one["iscrowd"]]


def record(cfg: Config, start: Path) -> None:
    """The config and the log of a training's start, as MMEngine writes them."""
    (start / "vis_data").mkdir(parents=True, exist_ok=True)
    cfg.dump(start / "vis_data" / "config.py")
    (start / "vis_data" / "scalars.json").write_text('{"loss": 1.0, "step": 1}')


class Runs:
    """Replaces training and test, and records their calls."""

    def __init__(self, truth: dict[str, Any]):
        self.truth = truth
        self.calls: list[tuple[str, str, str]] = []
        self.fails_at: tuple[str, str, str] | None = None
        self.evaluator = "test_evaluator"
        self.noisy = True

    def __call__(self, command: list[str], log: Path, variables: Any, descriptors: Any) -> int:
        with log.open("a") as file:
            file.write("Epoch(train)  [1][ 5/26]  lr: 1e-3  eta: 0:01:18  time: 1.0\n")
        tool, config = Path(command[1]).stem, Path(command[2]).stem
        folder = Path(command[command.index("--work-dir") + 1])
        run = folder if tool == "train" else folder.parent
        self.calls.append((tool, config, run.name))
        if self.calls[-1] == self.fails_at:
            with log.open("a") as file:
                file.write("RuntimeError: no more memory\n")
            return 1
        folder.mkdir(parents=True, exist_ok=True)
        options = command[command.index("--cfg-options") + 1 :]
        cfg = effective_config(command[2], options)
        if tool == "train":
            assert "--resume" in command
            assert f"randomness.seed={run.name.removeprefix('seed')}" in command
            (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
            (folder / "epoch_1.pth").touch()
            record(cfg, folder / "20260101_000000")
        else:
            evaluator = coco_evaluator(cfg)
            assert evaluator is not None
            assert evaluator[0] == self.evaluator
            prefix = evaluator[1]["outfile_prefix"]
            Path(prefix).parent.mkdir(parents=True, exist_ok=True)  # as MMEngine does
            (folder / "1" / "vis_data").mkdir(parents=True, exist_ok=True)
            cfg.dump(folder / "1" / "vis_data" / "config.py")
            noise = 0.03 if "sa-" in config else 0.1
            found = detections(self.truth, noise, seed=int(run.name[-1])) if self.noisy else perfect(self.truth)
            boxes = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in found]
            Path(f"{prefix}.bbox.json").write_text(json.dumps(boxes))
        return 0
