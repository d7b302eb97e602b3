"""Write a report on several trainings as one HTML page: metrics beside the paper's, curves, significance, and images.

All variants are compared with the one without attention, or with the one that --baseline names. Verdicts and images
need results.bbox.json in the work directories, which run_comparison.py writes. Work directories of MMPretrain's
classifiers make the same page, with verdicts where MMPretrain's test.py --out has written results.pkl into them.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from sa_mmdet.atomic_write import atomic_write_text, check_folder
from sa_mmdet.evaluation import Run, read_run
from sa_mmdet.evaluation.report import build_report
from sa_mmdet.tool_options import add_resamples, at_least
from sa_mmdet.untrusted import read_json


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dirs", nargs="+", metavar="work_dir", help="work directories of trainings")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the page to write (default: %(default)s)"
    )
    parser.add_argument("--speed", help="JSON file that benchmark.py wrote with --json (default: none)")
    parser.add_argument(
        "--baseline",
        metavar="VARIANT",
        help="what the others are compared with, such as 'RetinaNet ResNet-50 SE', or SE where all detectors are the "
        "same (default: the first variant without attention)",
    )
    parser.add_argument(
        "--data-root",
        type=Path,
        metavar="FOLDER",
        help="the folder of the data set, if it is no longer where the configs say (default: where they say)",
    )
    add_resamples(parser)
    parser.add_argument(
        "--images",
        "--pictures",
        type=at_least(0),
        default=6,
        metavar="NUMBER",
        help="number of images to show (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    runs: list[Run] = []
    skipped = []
    for folder in arguments.work_dirs:
        try:
            runs.append(dataclasses.replace(read_run(folder), data_root=arguments.data_root))
        except ValueError as error:
            skipped.append(str(error))
    if not runs:
        sys.exit("\n".join(f"report: {line}" for line in skipped))
    try:
        check_folder(arguments.out)
        speed = read_json(arguments.speed) if arguments.speed else None
        command = shlex.join(["python", "tools/analysis_tools/report.py", *sys.argv[1:]])
        options = (arguments.resamples, arguments.images, command, arguments.baseline)
        page = build_report(runs, skipped, speed, *options)
        atomic_write_text(arguments.out, page)
    except (OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    for line in skipped:
        print(f"skipped {line}")
    print(f"{arguments.out}: {len(runs)} runs")


if __name__ == "__main__":
    main()
