"""Say how often verdicts are false, from many runs of ONE config that differ in their seeds alone (A/A trials).

The runs are drawn into studies of several variants with several seeds each, of which none is better than another; the
same is done with simulated runs that have the measured variances. With 30 runs all of the default studies are possible.
"""

import argparse
import math
import sys

import numpy as np

from sa_mmdet.evaluation import TASKS, evaluate_common
from sa_mmdet.evaluation.bootstrap import bootstrap
from sa_mmdet.evaluation.calibration import Trials
from sa_mmdet.tool_options import add_level, add_resamples, at_least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="COCO annotations of the test images")
    parser.add_argument("results", nargs="+", help="COCO result files, one per run")
    parser.add_argument(
        "--seeds", type=at_least(1), nargs="+", default=[1, 3, 5], help="runs of a variant (default: 1 3 5)"
    )
    parser.add_argument(
        "--variants", type=at_least(2), nargs="+", default=[2, 6], help="variants of a study (default: 2 6)"
    )
    parser.add_argument("--studies", type=at_least(1), default=4000, help="number of studies (default: %(default)s)")
    add_resamples(parser)
    add_level(parser)
    arguments = parser.parse_args()
    if len(arguments.results) < 4:
        parser.error(f"{len(arguments.results)} runs do not show how runs scatter: give at least 4, better 30")
    try:
        evaluated, _ = evaluate_common(arguments.annotations, arguments.results)
        task, by_file = next(iter(evaluated.items()))
        evaluations = [by_file[path] for path in arguments.results]
        samples = bootstrap(evaluations, arguments.resamples, 0)
    except (OSError, ValueError) as error:
        sys.exit(f"calibrate_verdicts: {error}")
    points = np.array([evaluation.points["AP"] for evaluation in evaluations])
    draws = np.array([own["AP"] for own in samples])
    trials = Trials(points, draws, evaluations[0].images, arguments.level)
    simulation = trials.simulation()
    print(
        f"{len(points)} runs on {trials.images} images: {TASKS[task]} AP {100 * points.mean():.2f}; standard deviation "
        f"{100 * points.std(ddof=1):.2f}, of which {100 * simulation.luck:.2f} is luck with these images\n"
    )
    print("| studies | seeds | variants | with a false verdict, % | intervals that hold the truth, % |")
    print("|---|---|---|---|---|")
    for name, studies in (("trained runs", trials), ("simulated", simulation)):
        for seeds in arguments.seeds:
            for variants in arguments.variants:
                if name == "trained runs" and seeds * variants > len(points):
                    continue
                found = studies.rates(variants, seeds, arguments.studies)
                spread = "" if math.isnan(found.error) else f" +- {100 * found.error:.1f}"
                print(f"| {name} | {seeds} | {variants} | {100 * found.false:.1f}{spread} | {100 * found.held:.1f} |")


if __name__ == "__main__":
    main()
