"""Train several configs with several seeds each, and compare their metrics with those of the first config.

The work directory of a run is WORK_DIR/<config>/seed<n>. The same command continues where it was stopped: finished runs
are not repeated, an interrupted one resumes at its last checkpoint, and a failed one does not stop the others. Several
such commands at the same time share the work. What the trainings print is in train.log and test.log of their work
directories. The metrics are written to WORK_DIR/comparison.json, and a page about them to WORK_DIR/report.html. With
--paper the configs are those of a table of the paper, and each detector with each depth is compared on its own.
"""

import argparse
import sys
from pathlib import Path

import torch

from sa_mmdet.studies.checkpoints import KEPT
from sa_mmdet.studies.commands import Options, compare_configs
from sa_mmdet.studies.paper import TABLES, Group, groups_of
from sa_mmdet.tool_options import add_level, add_plan, add_resamples, at_least, seed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "configs", nargs="*", help="configs of detectors or classifiers; the others are compared with the first"
    )
    parser.add_argument(
        "--paper", choices=TABLES, help="train the configs of this table of the paper (default: those that are given)"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=seed, default=[0, 1, 2], help="one run per config and seed (default: 0 1 2)"
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for all runs (required)")
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        help="runs at a time, each on GPUs of its own (default: 1, and with --slurm as many as it lets run)",
    )
    parser.add_argument(
        "--gpus-per-run",
        type=at_least(1),
        metavar="N",
        help="processes of a run, each on a GPU of its own, or on CPUs on a machine without GPUs (default: 1)",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="let learning rates follow the images per step, as train.py does (default: with --paper alone)",
    )
    parser.add_argument(
        "--keep-checkpoints",
        choices=KEPT,
        default="all",
        help="checkpoints of a finished run to keep; without those of all epochs a study needs less disk space "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--slurm",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help="submit the runs to slurm as an array of jobs, with these options for sbatch, as in "
        "--slurm='--partition=gpu --time=24:00:00' (default: train here)",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--plan-only",
        action="store_true",
        help="list the runs, and the hours and the disk space that they take, and do nothing (default: train and "
        "compare)",
    )
    what.add_argument(
        "--status", action="store_true", help="say how far each run is, and do nothing (default: train and compare)"
    )
    what.add_argument(
        "--run", type=at_least(1), metavar="N", help="train and test only the Nth run of --status (default: all runs)"
    )
    what.add_argument("--judge", action="store_true", help="compare finished runs, and train none (default: train all)")
    add_plan(parser)
    add_resamples(parser)
    add_level(parser)
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="changes to all configs, as train.py takes them (default: none)",
    )
    arguments = parser.parse_args()
    if bool(arguments.configs) == bool(arguments.paper):
        parser.error("give either configs or --paper")
    names = [Path(config).stem for config in arguments.configs]
    if len(set(names)) < len(names) or len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("there is a duplicate config or seed: give each once; two configs may not have the same file name")
    return arguments


def task_arguments(arguments: argparse.Namespace) -> list[str]:
    """The arguments for a task of slurm: the same, but for --slurm and --jobs."""
    found = ["--paper", arguments.paper] if arguments.paper else [*arguments.configs]
    found += ["--seeds", *map(str, arguments.seeds), "--work-dir", str(arguments.work_dir)]
    for name in ("gpus_per_run", "keep_checkpoints", "resamples", "level", "plan"):
        value = getattr(arguments, name)
        found += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    found += ["--auto-scale-lr"] if arguments.auto_scale_lr else []
    return found + (["--cfg-options", *arguments.cfg_options] if arguments.cfg_options else [])


def main() -> None:
    arguments = parse()
    groups = groups_of(arguments.paper) if arguments.paper else [Group("", tuple(arguments.configs))]
    options = Options(
        seeds=arguments.seeds,
        work_dir=arguments.work_dir,
        cfg_options=arguments.cfg_options,
        jobs=arguments.jobs,
        gpus=torch.cuda.device_count(),
        gpus_per_run=arguments.gpus_per_run,
        scale_lr=arguments.auto_scale_lr or bool(arguments.paper),
        keep_checkpoints=arguments.keep_checkpoints,
        resamples=arguments.resamples,
        level=arguments.level,
        difference=None if arguments.plan is None else arguments.plan / 100,
        command=sys.argv[1:],
        task_arguments=task_arguments(arguments),
    )
    action = next((name for name in ("plan_only", "status", "run", "judge") if getattr(arguments, name)), "all")
    try:
        compare_configs(groups, options, action, arguments.run, arguments.slurm)
    except (OSError, ValueError) as error:
        sys.exit(f"run_comparison: {error}")


if __name__ == "__main__":
    main()
