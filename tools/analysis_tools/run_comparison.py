"""Train several configs with several seeds each, and compare their metrics with those of the first config.

The work directory of a run is WORK_DIR/<config>/seed<n>. The same command continues where it was stopped: finished runs
are not repeated, an interrupted one resumes at its last checkpoint, and a failed one does not stop the others. Several
such commands at the same time share the work. What the trainings print is in train.log and test.log of their work
directories. All metrics are written to WORK_DIR/comparison.json.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from sa_mmdet.atomic_write import atomic_write_text
from sa_mmdet.evaluation import METRICS, TASKS, Comparison, compare, without_nan
from sa_mmdet.evaluation.evaluators import annotations_of, effective_config
from sa_mmdet.evaluation.run_queue import status, work
from sa_mmdet.evaluation.studies import check_study, complete_results
from sa_mmdet.evaluation.trainings import Training
from sa_mmdet.tool_options import add_level, add_plan, add_resamples, at_least, seed


def print_table(found: Comparison, seeds: int) -> None:
    width = max(map(len, found.variants))
    print(f"\n{TASKS[found.task]}, mean of {seeds} seeds (standard deviation from seed to seed)")
    for name, mean, deviation in zip(found.variants, found.means, found.deviations, strict=True):
        cells = []
        for metric in METRICS:
            spread = deviation[metric]
            cells.append(f"{metric} {100 * mean[metric]:.1f}" + ("" if spread is None else f" ({100 * spread:.1f})"))
        print(f"{name:{width}}  {'  '.join(cells)}")
    print("\n".join(found.sentences()))


def as_json(found: Comparison) -> dict[str, Any]:
    return dict(
        runs=[[run.points for run in runs] for runs in found.runs],
        means=found.means,
        deviations=found.deviations,
        differences=found.differences,
    )


def common_annotations(configs: list[str], cfgs: list[Config]) -> tuple[list[str], str]:
    """The keys of the configs' evaluators, and the annotations that all of them test on."""
    found = [annotations_of(config, cfg) for config, cfg in zip(configs, cfgs, strict=True)]
    files = sorted({annotations for _, annotations in found})
    if len(files) > 1:
        raise ValueError(f"the configs are tested on different annotations ({', '.join(files)}): use one file")
    return [key for key, _ in found], files[0]


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="configs of detectors; the others are compared with the first")
    parser.add_argument(
        "--seeds", nargs="+", type=seed, default=[0, 1, 2], help="one run per config and seed (default: 0 1 2)"
    )
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for all runs (required)")
    parser.add_argument(
        "--jobs", type=at_least(1), default=1, help="runs at a time, each on a GPU of its own (default: %(default)s)"
    )
    parser.add_argument(
        "--status", action="store_true", help="say how far each run is, and do nothing (default: train and compare)"
    )
    add_plan(parser)
    add_resamples(parser)
    add_level(parser)
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="changes to all configs, as train.py takes them (default: none)",
    )
    arguments = parser.parse_args()
    names = [Path(config).stem for config in arguments.configs]
    if len(set(names)) < len(names) or len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("there is a duplicate config or seed: give each once; two configs may not have the same file name")
    return arguments, names


def main() -> None:
    arguments, names = parse()
    written: dict[str, Any] = dict(command=sys.argv[1:], names=names, seeds=arguments.seeds, tasks={})
    folders = {name: [arguments.work_dir / name / f"seed{seed}" for seed in arguments.seeds] for name in names}
    try:
        check_study(arguments.work_dir / "comparison.json", names)
        cfgs = [effective_config(config, arguments.cfg_options) for config in arguments.configs]
        keys, annotations = common_annotations(arguments.configs, cfgs)
        # All configs with the first seed, then with the next: if stopped, the finished seeds can be compared.
        runs = [
            Training(config, cfg, chosen, folders[name][number], key)
            for number, chosen in enumerate(arguments.seeds)
            for config, cfg, name, key in zip(arguments.configs, cfgs, names, keys, strict=True)
        ]
        if arguments.status:
            print(*status(runs), sep="\n")
            return
        say = functools.partial(print, flush=True)
        failures = work(runs, arguments.cfg_options, annotations, arguments.jobs, torch.cuda.device_count(), say)
        if failures:
            raise ValueError(f"{len(failures)} of {len(runs)} runs failed:\n" + "\n".join(failures))
        for task in TASKS:
            files, doubts = complete_results(task, folders, annotations)
            print(*doubts, sep="\n", end="\n" if doubts else "")
            if files:
                found = compare(annotations, files, task, arguments.resamples, arguments.level, show_progress=True)
                print_table(found, len(arguments.seeds))
                if arguments.plan is not None:
                    print(*found.plans(arguments.plan / 100), sep="\n")
                written["tasks"][task] = as_json(found)
        atomic_write_text(arguments.work_dir / "comparison.json", json.dumps(without_nan(written), indent=2))
    except (OSError, ValueError) as error:
        sys.exit(f"run_comparison: {error}")
    print(arguments.work_dir / "comparison.json")


if __name__ == "__main__":
    main()
