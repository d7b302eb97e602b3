"""Write one static HTML page on a set of trainings: figures beside the paper's, curves, significance, pictures.

The first work dir's arm is what the others are compared with. Significance and pictures need results.bbox.json in the
work dirs, which run_comparison leaves there.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import sa_mmdet
from sa_mmdet.atomic_write import written_aside
from sa_mmdet.evaluation.report import build_report
from sa_mmdet.evaluation.runs import Run, read_run

TABLES = Path(sa_mmdet.__file__).resolve().parent / ".mim" / "configs" / "_paper_"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dirs", nargs="+", metavar="work_dir")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--speed", help="what benchmark.py --json wrote")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=6)
    arguments = parser.parse_args()
    runs: list[Run] = []
    skipped = []
    for folder in arguments.work_dirs:
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            skipped.append(str(error))
    if not runs:
        sys.exit("\n".join(f"report: {line}" for line in skipped))
    try:
        speed = json.loads(Path(arguments.speed).read_text()) if arguments.speed else None
        command = shlex.join(["python", "tools/analysis_tools/report.py", *sys.argv[1:]])
        page = build_report(runs, TABLES, skipped, speed, arguments.resamples, arguments.pictures, command)
        with written_aside(arguments.out) as aside:
            aside.write_text(page)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"report: {error}")
    for line in skipped:
        print(f"skipped {line}")
    print(f"{arguments.out}: {len(runs)} runs")


if __name__ == "__main__":
    main()
