"""A study: which configs with which seeds are trained, and which of them are compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sa_mmdet.evaluation.evaluators import annotations_of, effective_config
from sa_mmdet.evaluation.runs import kind_of
from sa_mmdet.evaluation.tasks import CLASSIFIER

from .launching import classifier_tools
from .paper import Group
from .training import Training

_SCALED = "auto_scale_lr.enable=True"


@dataclass(frozen=True)
class Study:
    """Runs, and the groups of configs that are compared."""

    groups: Sequence[Group]
    runs: Sequence[Training]  # all configs with the first seed, then with the next
    work_dir: Path

    def of(self, group: Group) -> dict[str, list[Training]]:
        """The runs of a group by the names of its configs."""
        return {Path(config).stem: [run for run in self.runs if run.config == config] for config in group.configs}


def make_study(
    groups: Sequence[Group],
    seeds: Sequence[int],
    work_dir: Path,
    options: Sequence[str] = (),
    processes: int = 1,
    scale_lr: bool = False,
) -> Study:
    """Read the configs of a study.

    Args:
        groups: The configs. Those of a group are tested on the same images.
        seeds: The random seeds, one run per config and seed.
        work_dir: The folder of all runs; that of a run is <work_dir>/<config>/seed<n>.
        options: ``KEY=VALUE`` pairs for --cfg-options.
        processes: The number of processes of each training.
        scale_lr: Whether learning rates follow the size of the batch over all processes, as MMEngine's auto_scale_lr.

    Raises:
        ValueError: A config cannot be read or has no such test, or those of a group are tested on different images.
    """
    own = [*options, _SCALED] if scale_lr else [*options]
    configs: dict[str, tuple[Config, str, str]] = {}
    for group in groups:
        found = {config: _read(config, own, scale_lr) for config in group.configs}
        files = sorted({annotations for _, _, annotations in found.values()})
        if "" in files and len(files) > 1:
            raise ValueError("some configs are detectors and some are classifiers: give one kind")
        if len(files) > 1:
            raise ValueError(f"the configs are tested on different annotations ({', '.join(files)}): use one file")
        configs |= found
    _check_out_dirs({config: cfg for config, (cfg, _, _) in configs.items()})
    if any(not evaluator for _, evaluator, _ in configs.values()):
        classifier_tools()
    runs = [
        Training(
            config, cfg, own, seed, work_dir / Path(config).stem / f"seed{seed}", evaluator, annotations, processes
        )
        for seed in seeds
        for config, (cfg, evaluator, annotations) in configs.items()
    ]
    return Study(groups, runs, work_dir)


def total_batch(run: Training) -> tuple[int, int] | None:
    """The images per step over all processes, and those that the learning rate is for; None if one is not known."""
    batch = _at(run.cfg, ("train_dataloader", "batch_size"))
    base = _at(run.cfg, ("auto_scale_lr", "base_batch_size"))
    return (batch * run.processes, base) if isinstance(batch, int) and isinstance(base, int) else None


def _read(config: str, options: Sequence[str], scale_lr: bool) -> tuple[Config, str, str]:
    """A config with the options, the key of its evaluator, and the annotations that it tests on."""
    cfg = effective_config(config, options)
    if scale_lr and not isinstance(_at(cfg, ("auto_scale_lr", "base_batch_size")), int):
        raise ValueError(f"{config}: has no auto_scale_lr.base_batch_size, the batch that its learning rate is for")
    if _at(cfg, ("model", "type")) is not None and kind_of(cfg) is CLASSIFIER:
        return cfg, "", ""
    return cfg, *annotations_of(config, cfg)


def _check_out_dirs(cfgs: Mapping[str, Config]) -> None:
    """Refuse a folder for the checkpoints of several configs: MMEngine tells them apart by 'seed0' alone in it."""
    found: dict[str, str] = {}
    for config, cfg in cfgs.items():
        folder = _at(cfg, ("default_hooks", "checkpoint", "out_dir"))
        if folder is not None and str(folder) in found:
            raise ValueError(
                f"{config}: default_hooks.checkpoint.out_dir {str(folder)!r}: runs of different configs with one seed "
                f"would share a folder in it, as those of {found[str(folder)]}: leave it out, and let --work-dir name "
                "a disk with space"
            )
        found[str(folder)] = config


def _at(cfg: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        cfg = cfg.get(key) if isinstance(cfg, dict | Config) else None
    return cfg
