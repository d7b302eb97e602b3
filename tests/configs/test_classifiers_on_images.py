"""The configs of CIFAR and Places-365 take a training step on files in the formats of these data sets."""

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from places import CONFIGS

pytest.importorskip("mmpretrain", reason="MMPretrain, or torchvision beneath it, is not installed")
IMAGES = 4  # in each file


def write_cifar(folder: Path, classes: int) -> str:
    """Write made-up batches as CIFAR's archives have them; returns the name of the class that reads them.

    MMPretrain compares the sums of the files with those of the real ones, which made-up files cannot have.
    """
    from mmpretrain.datasets import CIFAR10, CIFAR100
    from mmpretrain.registry import DATASETS

    base: Any = CIFAR10 if classes == 10 else CIFAR100
    files = [name for name, _ in base.train_list + base.test_list]
    (folder / base.base_folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in files:
        data = random.integers(0, 256, (IMAGES, 3 * 32 * 32), dtype=np.uint8)
        labels = {"labels" if classes == 10 else "fine_labels": [classes - 1 - i for i in range(IMAGES)]}
        (folder / base.base_folder / name).write_bytes(pickle.dumps(dict(data=data, **labels)))
    unchecked = dict(
        train_list=[[name, None] for name, _ in base.train_list], test_list=[[name, None] for name, _ in base.test_list]
    )
    made_up = type(f"MadeUp{base.__name__}", (base,), unchecked)
    DATASETS.register_module(module=made_up, force=True)
    return made_up.__name__


def step(cfg: Config, folder: Path) -> tuple[int, Any]:
    """Train a step and test a batch; the number of training images, and the results."""
    cfg.work_dir = str(folder / "work")
    cfg.experiment_name = f"{folder.name}_{cfg.model.backbone.type}"
    for name in ("train", "val", "test"):
        cfg[f"{name}_dataloader"] |= dict(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.default_scope = "mmpretrain"
    runner = Runner.from_cfg(cfg)
    loader = runner.build_dataloader(cfg.train_dataloader)
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
    model: Any = runner.model
    model.train()
    losses = model.train_step(next(iter(loader)), optimizer)
    assert losses["loss"].isfinite()
    model.eval()
    return len(loader.dataset), model.test_step(next(iter(runner.build_dataloader(cfg.test_dataloader))))


@pytest.mark.parametrize("classes", [10, pytest.param(100, marks=pytest.mark.long)])
def test_cifar(classes: int, tmp_path: Path) -> None:
    kind = write_cifar(tmp_path / "data", classes)
    cfg = Config.fromfile(CONFIGS / "cifar" / f"se-r110_cifar{classes}.py")
    assert cfg.train_dataloader.batch_size == cfg.val_dataloader.batch_size == 128
    cfg.model.backbone.depth = 20
    for name in ("train", "val", "test"):
        cfg[f"{name}_dataloader"].dataset |= dict(type=kind, data_root=str(tmp_path / "data"))
    images, results = step(cfg, tmp_path)
    assert images == (5 * IMAGES if classes == 10 else IMAGES)
    assert [len(result.pred_score) for result in results] == [classes] * 2
    assert [result.gt_label.item() for result in results] == [classes - 1, classes - 2]


def test_places(tmp_path: Path) -> None:
    cfg = Config.fromfile(CONFIGS / "places365" / "se-r152_8xb32_places365.py")
    lists = {"data_large": "places365_train_standard.txt", "val_large": "places365_val.txt"}
    for folder, name in lists.items():
        paths = [f"a/airfield/{i}.jpg" for i in range(IMAGES)]
        (tmp_path / folder / "a" / "airfield").mkdir(parents=True)
        for path in paths:
            cv2.imwrite(str(tmp_path / folder / path), np.full((40, 60, 3), 100, np.uint8))
        (tmp_path / name).write_text("".join(f"{path} {364 - i}\n" for i, path in enumerate(paths)))
    cfg.model.backbone.depth = 50
    for name in ("train", "val", "test"):
        cfg[f"{name}_dataloader"].dataset.data_root = str(tmp_path)
    images, results = step(cfg, tmp_path)
    assert images == IMAGES
    assert [len(result.pred_score) for result in results] == [365] * 2
    assert [result.gt_label.item() for result in results] == [364, 363]
