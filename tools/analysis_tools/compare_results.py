"""Compare COCO result files on the same images: the differences to the first variant, with intervals and verdicts.

test.py writes result files PREFIX.bbox.json and PREFIX.segm.json with --cfg-options
test_evaluator.outfile_prefix=PREFIX. Files that --names gives the same name are runs of one variant with several seeds.
A verdict needs two runs of each variant, since another seed changes the metrics, too.
"""

import argparse
import json
import sys
from typing import Any

from sa_mmdet.atomic_write import atomic_write_text, check_folder
from sa_mmdet.evaluation import METRICS, TASKS, Comparison, common_tasks, compare, without_nan
from sa_mmdet.evaluation.error_types_comparison import LEAST_SCORE, compare_errors
from sa_mmdet.evaluation.error_types_tables import as_text, error_tables, errors_as_json, told_apart
from sa_mmdet.evaluation.plots import plot_intervals
from sa_mmdet.evaluation.result_files import names_of
from sa_mmdet.tool_options import add_level, add_plan, add_resamples, probability, seed

COLUMN = 8  # characters


def print_table(found: Comparison) -> None:
    width = max(map(len, found.variants))
    print(f"\n{TASKS[found.task]:{width}}", *(f"{name:>{COLUMN}}" for name in METRICS), sep="")
    for name, points in zip(found.variants, found.means, strict=True):
        print(f"{name:{width}}", *(f"{100 * points[metric]:{COLUMN}.1f}" for metric in METRICS), sep="")


def print_errors(arguments: argparse.Namespace, variants: list[tuple[str, list[str]]], task: str) -> dict[str, Any]:
    given = (arguments.resamples, arguments.level, arguments.seed, arguments.errors_above)
    found = compare_errors(arguments.annotations, variants, task, *given, show_progress=True)
    for table in error_tables(found):
        print(f"\n{as_text(table)}")
    print(*told_apart(found), sep="\n")
    return errors_as_json(found)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="COCO annotations of the images")
    parser.add_argument("results", nargs="+", help="COCO result files; the first is of the variant to compare with")
    parser.add_argument(
        "--names",
        nargs="+",
        help="the variant of each result file, such as none none SA SA (default: the files' own names, or their "
        "folders' where these are the same)",
    )
    add_plan(parser)
    add_resamples(parser)
    add_level(parser)
    parser.add_argument(
        "--errors",
        action="store_true",
        help="say what each type of error costs: classification, localisation, both, duplicate, background, missed "
        "(default: do not say it)",
    )
    parser.add_argument(
        "--errors-above",
        type=probability,
        default=LEAST_SCORE,
        metavar="SCORE",
        help="with --errors, count the detections with this score or more (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draws (default: %(default)s)")
    parser.add_argument("--json", help="file for all metrics and intervals (default: none)")
    parser.add_argument("--png", help="file for a plot of the intervals (default: none)")
    arguments = parser.parse_args()
    names = arguments.names or names_of(arguments.results)
    if len(names) != len(arguments.results):
        parser.error(f"{len(names)} names for {len(arguments.results)} files: give one name per file")
    return arguments, names


def main() -> None:
    arguments, names = parse()
    comparisons = []
    written: dict[str, Any] = dict(
        command=sys.argv[1:], names=list(dict.fromkeys(names)), seed=arguments.seed, tasks={}
    )
    try:
        check_folder(arguments.json)
        check_folder(arguments.png)
        tasks, doubts = common_tasks(arguments.annotations, arguments.results)
        print(*doubts, sep="\n", end="\n" if doubts else "")
        files: dict[str, list[str]] = {}
        for name, path in zip(names, arguments.results, strict=True):
            files.setdefault(name, []).append(path)
        for task in tasks:
            found = compare(
                arguments.annotations,
                list(files.items()),
                task,
                arguments.resamples,
                arguments.level,
                arguments.seed,
                True,
            )
            print_table(found)
            written["tasks"][task] = dict(points=found.means)
            if found.differences:
                print(*found.sentences(METRICS), sep="\n")
                if arguments.plan is not None:
                    print(*found.plans(arguments.plan / 100), sep="\n")
                written["tasks"][task]["differences"] = found.differences
            if arguments.errors:
                written["tasks"][task]["errors"] = print_errors(arguments, list(files.items()), task)
            written["images"] = found.images
            comparisons.append(found)
        written |= dict(level=arguments.level, resamples=arguments.resamples)
        if arguments.json:
            atomic_write_text(arguments.json, json.dumps(without_nan(written), indent=2))
        if arguments.png and len(files) > 1:
            plot_intervals(arguments.png, comparisons)
    except (OSError, ValueError) as error:
        sys.exit(f"compare_results: {error}")


if __name__ == "__main__":
    main()
