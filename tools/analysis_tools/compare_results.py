"""Compare result files on the same images: the differences to the first variant, with intervals and verdicts.

For detectors, give COCO annotations and COCO result files; for classifiers, the files that MMPretrain's test.py --out
writes, or JSON or CSV with an image, its label and scores or ranked classes in each entry or line.

test.py writes result files PREFIX.bbox.json and PREFIX.segm.json with --cfg-options
test_evaluator.outfile_prefix=PREFIX. Files that --names gives the same name are runs of one variant with several seeds.
A verdict needs two runs of each variant, since another seed changes the metrics, too.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from sa_mmdet.atomic_write import atomic_write_text, check_folder
from sa_mmdet.evaluation import TASKS, Comparison, compare, evaluate_common, without_nan
from sa_mmdet.evaluation.classification import compare_classifiers
from sa_mmdet.evaluation.classification_classes import class_table, classes_as_json, classes_told_apart, compare_classes
from sa_mmdet.evaluation.classification_files import is_predictions, is_truth
from sa_mmdet.evaluation.error_types_comparison import LEAST_SCORE, compare_errors
from sa_mmdet.evaluation.error_types_tables import as_text, error_tables, errors_as_json, told_apart
from sa_mmdet.evaluation.forest import plot_forest
from sa_mmdet.evaluation.result_files import check_runs, names_of
from sa_mmdet.tool_options import add_level, add_plan, add_resamples, probability, seed

COLUMN = 8  # characters


def print_table(found: Comparison) -> None:
    width = max(map(len, found.variants))
    print(f"\n{TASKS.get(found.task, ''):{width}}", *(f"{name:>{COLUMN}}" for name in found.metrics), sep="")
    for name, points in zip(found.variants, found.means, strict=True):
        print(f"{name:{width}}", *(f"{100 * points[metric]:{COLUMN}.1f}" for metric in found.metrics), sep="")


def print_classes(arguments: argparse.Namespace, comparison: Comparison) -> dict[str, Any]:
    found = compare_classes(comparison, arguments.resamples, arguments.seed)
    print(f"\n{as_text(class_table(found))}")
    print(*classes_told_apart(found), sep="\n", end="\n" if found.differences else "")
    return classes_as_json(found)


def print_errors(arguments: argparse.Namespace, variants: list[tuple[str, list[str]]], task: str) -> dict[str, Any]:
    given = (arguments.resamples, arguments.level, arguments.seed, arguments.errors_above)
    found = compare_errors(arguments.annotations, variants, task, *given, show_progress=True)
    for table in error_tables(found):
        print(f"\n{as_text(table)}")
    print(*told_apart(found), sep="\n")
    return errors_as_json(found)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="COCO annotations of the images; for classifiers, their labels or nothing")
    parser.add_argument("results", nargs="*", help="result files; the first is of the variant to compare with")
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
    parser.add_argument("--png", help="file for a plot of all differences, with intervals and verdicts (default: none)")
    arguments = parser.parse_intermixed_args()  # for options between the files
    try:
        arguments.classifiers = is_predictions(arguments.annotations)
        if arguments.classifiers and not is_truth(arguments.annotations):
            arguments.results.insert(0, arguments.annotations)
            arguments.annotations = None
    except (OSError, ValueError) as error:
        sys.exit(f"compare_results: {error}")
    if not arguments.results:
        parser.error("the following arguments are required: results")
    if arguments.classifiers and arguments.errors:
        parser.error("--errors: its types are those of detections: leave it out for classifiers")
    names = arguments.names or names_of(arguments.results)
    if len(names) != len(arguments.results):
        parser.error(f"{len(names)} names for {len(arguments.results)} files: give one name per file")
    return arguments, names


def comparisons_of(arguments: argparse.Namespace, variants: list[tuple[str, list[str]]]) -> Iterator[Comparison]:
    given = (arguments.resamples, arguments.level, arguments.seed)
    if arguments.classifiers:
        yield compare_classifiers(variants, arguments.annotations, *given)
        return
    evaluated, doubts = evaluate_common(arguments.annotations, arguments.results)
    check_runs(dict(variants))
    print(*doubts, sep="\n", end="\n" if doubts else "")
    for task, evaluations in evaluated.items():
        yield compare(arguments.annotations, variants, task, *given, True, evaluations)


def main() -> None:
    arguments, names = parse()
    comparisons = []
    written: dict[str, Any] = dict(
        command=sys.argv[1:], names=list(dict.fromkeys(names)), seed=arguments.seed, tasks={}
    )
    try:
        check_folder(arguments.json)
        check_folder(arguments.png)
        files: dict[str, list[str]] = {}
        for name, path in zip(names, arguments.results, strict=True):
            files.setdefault(name, []).append(path)
        for found in comparisons_of(arguments, list(files.items())):
            print_table(found)
            written["tasks"][found.task] = dict(points=found.means)
            if found.differences:
                print(*found.sentences(found.metrics), sep="\n")
                if arguments.plan is not None:
                    print(*found.plans(arguments.plan / 100), sep="\n")
                written["tasks"][found.task]["differences"] = found.differences
            if arguments.classifiers:
                written["tasks"][found.task]["classes"] = print_classes(arguments, found)
            if arguments.errors:
                written["tasks"][found.task]["errors"] = print_errors(arguments, list(files.items()), found.task)
            written["images"] = found.images
            comparisons.append(found)
        written |= dict(level=arguments.level, resamples=arguments.resamples)
        if arguments.json:
            atomic_write_text(arguments.json, json.dumps(without_nan(written), indent=2))
        if arguments.png and len(files) > 1:
            plot_forest(arguments.png, comparisons)
    except (OSError, ValueError) as error:
        sys.exit(f"compare_results: {error}")


if __name__ == "__main__":
    main()
