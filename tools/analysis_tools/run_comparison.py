"""Train several configs with several seeds, and compare what they reach, the first config being the yardstick.

Each run has a folder WORK_DIR/<config>/seed<n>. Called again, the command goes on where it was stopped: finished runs
are not repeated, an interrupted one resumes at its last checkpoint. WORK_DIR/comparison.json holds all figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from tqdm import tqdm

from sa_mmdet.atomic_write import written_aside
from sa_mmdet.evaluation import comparison
from sa_mmdet.evaluation.comparison import METRICS, TASKS

TOOLS = Path(__file__).resolve().parent.parent


def run(config: str, seed: int, folder: Path, options: list[str]) -> None:
    """Train and test, unless that is done."""
    if list(folder.glob("results.*.json")):
        print(f"{folder}: finished before", flush=True)
        return
    train = [sys.executable, str(TOOLS / "train.py"), config, "--work-dir", str(folder), "--resume"]
    _call([*train, "--cfg-options", f"randomness.seed={seed}", *options], folder)
    last = folder / "last_checkpoint"
    if not last.is_file():
        raise ValueError(f"{folder}: the training left no checkpoint")
    # Aside first: a result file that is there is whole.
    aside = folder / "new"
    test = [sys.executable, str(TOOLS / "test.py"), config, last.read_text().strip(), "--work-dir", str(aside)]
    _call([*test, "--cfg-options", f"test_evaluator.outfile_prefix={aside / 'results'}", *options], folder)
    for path in sorted(aside.glob("results.*.json")):
        path.replace(folder / path.name)


def _call(command: list[str], folder: Path) -> None:
    status = subprocess.run(command, check=False).returncode
    if status:
        raise ValueError(f"{folder}: {' '.join(command[1:3])} ended with status {status}: call this again to go on")


def compare(annotations: str, folders: list[list[Path]], task: str, resamples: int, level: float) -> dict[str, Any]:
    """Figures of each run, means and deviations of each arm, and the means' differences to the first arm's."""
    files = [str(folder / f"results.{task}.json") for arm in folders for folder in arm]
    found = comparison.evaluate_files(annotations, files, task)
    with tqdm(total=comparison.steps(found, resamples), desc=f"{resamples} resamples", leave=False) as bar:
        samples = comparison.bootstrap(found, resamples, 0, bar.update)
    seeds = len(folders[0])
    arms = [slice(i * seeds, (i + 1) * seeds) for i in range(len(folders))]
    means = [comparison.averaged(found[arm], samples[arm]) for arm in arms]
    return dict(
        runs=[[evaluation.points for evaluation in found[arm]] for arm in arms],
        means=[evaluation.points for evaluation, _ in means],
        deviations=[
            {m: statistics.stdev(e.points[m] for e in found[arm]) if seeds > 1 else None for m in METRICS}
            for arm in arms
        ],
        differences=comparison.differences([e for e, _ in means], [sample for _, sample in means], level),
    )


def report(task: str, names: list[str], found: dict[str, Any], seeds: int, level: float) -> None:
    width = max(map(len, names))
    print(f"\n{TASKS[task]}, mean of {seeds} seeds (deviation from seed to seed)")
    for name, mean, deviation in zip(names, found["means"], found["deviations"], strict=True):
        cells = [
            f"{m} {100 * mean[m]:.1f}" + (f" ({100 * deviation[m]:.1f})" if deviation[m] is not None else "")
            for m in METRICS
        ]
        print(f"{name:{width}}  {'  '.join(cells)}")
    for name, row in zip(names[1:], found["differences"], strict=True):
        print(comparison.sentence((name, names[0]), task, "AP", row, f"{level:.0%} interval over the images"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--level", type=float, default=0.95)
    parser.add_argument("--cfg-options", nargs="+", default=[], help="for all runs, as train.py takes them")
    arguments = parser.parse_args()
    names = [Path(config).stem for config in arguments.configs]
    if len(set(names)) < len(names) or len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("a config or a seed is named twice")
    written: dict[str, Any] = dict(command=sys.argv[1:], names=names, seeds=arguments.seeds, tasks={})
    try:
        loaded = [Config.fromfile(config) for config in arguments.configs]
        annotations = {str(cfg.test_evaluator.ann_file) for cfg in loaded}
        if len(annotations) > 1:
            raise ValueError(f"the configs are tested on different annotations: {', '.join(sorted(annotations))}")
        folders = [[arguments.work_dir / name / f"seed{seed}" for seed in arguments.seeds] for name in names]
        # Seed by seed, so that a stop leaves whole comparisons.
        for number, seed in enumerate(arguments.seeds):
            for config, arm in zip(arguments.configs, folders, strict=True):
                run(config, seed, arm[number], arguments.cfg_options)
        tasks = [task for task in TASKS if (folders[0][0] / f"results.{task}.json").is_file()]
        for task in tasks:
            found = compare(annotations.copy().pop(), folders, task, arguments.resamples, arguments.level)
            report(task, names, found, len(arguments.seeds), arguments.level)
            written["tasks"][task] = found
    except (OSError, ValueError) as error:
        sys.exit(f"run_comparison: {error}")
    with written_aside(arguments.work_dir / "comparison.json") as aside:
        aside.write_text(json.dumps(written, indent=2))
    print(arguments.work_dir / "comparison.json")


if __name__ == "__main__":
    main()
