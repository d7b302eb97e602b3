"""Compare COCO result files on the same images, with paired-bootstrap intervals of the differences to the first.

test.py writes such files with --cfg-options test_evaluator.outfile_prefix=PREFIX: PREFIX.bbox.json, PREFIX.segm.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sa_mmdet.atomic_write import written_aside
from sa_mmdet.coco_format import annotations as coco_files
from sa_mmdet.evaluation import comparison
from sa_mmdet.evaluation.comparison import METRICS, TASKS

_COLUMN = 8


def print_table(task: str, names: list[str], found: list[comparison.Evaluation]) -> None:
    width = max(map(len, names))
    print(f"\n{TASKS[task]:{width}}", *(f"{name:>{_COLUMN}}" for name in METRICS), sep="")
    for name, evaluation in zip(names, found, strict=True):
        print(f"{name:{width}}", *(f"{100 * evaluation.points[metric]:{_COLUMN}.1f}" for metric in METRICS), sep="")


def sentences(
    task: str, names: list[str], rows: list[dict[str, dict[str, float]]], level: float, images: int
) -> list[str]:
    return [
        comparison.sentence((name, names[0]), task, metric, row, f"{level:.0%} interval", f"{images} images")
        for name, row in zip(names[1:], rows, strict=True)
        for metric in METRICS
    ]


def plot(path: str, names: list[str], rows: dict[str, list[dict[str, dict[str, float]]]], level: float) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(rows), figsize=(6 * len(rows), 4), squeeze=False, constrained_layout=True)
    for panel, (task, found) in zip(panels[0], rows.items(), strict=True):
        for arm, (name, row) in enumerate(zip(names[1:], found, strict=True)):
            heights = [i + 0.6 * (arm - (len(found) - 1) / 2) / len(found) for i in range(len(METRICS))]
            middle = [100 * row[metric]["difference"] for metric in METRICS]
            ends = [[100 * abs(row[m][key] - row[m]["difference"]) for m in METRICS] for key in ("low", "high")]
            panel.errorbar(middle, heights, xerr=ends, fmt="o", capsize=3, label=name)
        panel.axvline(0, color="grey", linewidth=1)
        panel.set_yticks(range(len(METRICS)), METRICS)
        panel.invert_yaxis()
        panel.set_xlabel(f"{TASKS[task]} AP points above {names[0]}, {level:.0%} interval")
        panel.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="COCO annotations of the images")
    parser.add_argument("results", nargs="+", help="COCO result files; the first is what the others are compared with")
    parser.add_argument("--names", nargs="+", help="of the arms; the files' names by default")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--level", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--png", help="file for a plot of the intervals")
    arguments = parser.parse_args()
    names = arguments.names or [Path(path).name.removesuffix(".json") for path in arguments.results]
    if len(names) != len(arguments.results):
        parser.error(f"{len(names)} names for {len(arguments.results)} files: give one for each")
    if arguments.resamples < 1 or not 0 < arguments.level < 1:
        parser.error(f"--resamples {arguments.resamples} must be 1 or more, --level {arguments.level} between 0 and 1")
    written: dict[str, Any] = dict(command=sys.argv[1:], names=names, seed=arguments.seed, tasks={})
    rows = {}
    answered = []
    try:
        coco = coco_files.load_annotations(arguments.annotations)
        for path in arguments.results:
            entries = coco_files.load_results(path, coco)
            if entries:
                answered.append(coco_files.tasks_of(entries))
            else:
                print(f"{path}: holds no detections: judged as none")
        images = len(coco.getImgIds())
        del coco, entries  # gigabytes, for a large set
    except ValueError as error:
        sys.exit(f"compare_results: {error}")
    tasks = set.intersection(*answered) if answered else {"bbox"}
    if not tasks:
        sys.exit("compare_results: the files have neither boxes nor masks in common")
    for task in sorted(tasks):
        found = comparison.evaluate_files(arguments.annotations, arguments.results, task)
        print_table(task, names, found)
        written["tasks"][task] = dict(points=[evaluation.points for evaluation in found])
        if len(found) > 1:
            total = comparison.steps(found, arguments.resamples)
            with tqdm(total=total, desc=f"{arguments.resamples} resamples", leave=False) as bar:
                samples = comparison.bootstrap(found, arguments.resamples, arguments.seed, bar.update)
            rows[task] = comparison.differences(found, samples, arguments.level)
            print("\n".join(sentences(task, names, rows[task], arguments.level, images)))
            written["tasks"][task]["differences"] = rows[task]
    written |= dict(images=images, level=arguments.level, resamples=arguments.resamples)
    if arguments.json:
        with written_aside(arguments.json) as aside:
            aside.write_text(json.dumps(written, indent=2))
    if arguments.png and rows:
        plot(arguments.png, names, rows, arguments.level)


if __name__ == "__main__":
    main()
