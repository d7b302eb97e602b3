"""Measure the time and memory of shuffle attention, and compare them with this project's targets."""

import argparse
import itertools
import sys
from typing import Any, NamedTuple

import torch

from sa_mmdet.analysis.benchmark import benchmark
from sa_mmdet.tool_options import add_device


class Target(NamedTuple):
    """A limit on one of the benchmark's measurements of the fused variant."""

    level: str
    mode: str
    quantity: str
    limit: float
    at_least: bool = False  # whether the limit is a minimum, or a maximum

    def met_by(self, value: float) -> bool:
        """Whether a measured value is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def line(self, value: float) -> str:
        """Describe a measured value and whether it is within the limit."""
        verdict, sign = "met   " if self.met_by(value) else "MISSED", ">=" if self.at_least else "<="
        return f"   {verdict} {self.mode} {self.quantity} {value:.3f} (target {sign} {self.limit})"


# The ratios are to the plain ResNet-50 in the same run.
CPU = [
    Target("backbone", "inference", "ratio_paired", 1.10),
    Target("backbone", "training", "ratio_paired", 1.08),
    Target("backbone", "memory", "ratio", 1.02),
]
CUDA = [
    Target("backbone", "inference", "ratio_paired", 1.00),
    Target("backbone", "training", "ratio_paired", 1.00),
    Target("backbone", "memory", "ratio", 1.00),
    Target("operator", "inference", "share_of_copy", 0.8, at_least=True),
    Target("operator", "backward", "share_of_copy", 0.8, at_least=True),
    Target("operator", "inference", "speed_of_published", 4.0, at_least=True),
    Target("operator", "backward", "speed_of_published", 4.0, at_least=True),
]


def measure(level: str, shape: tuple[int, int], batch: int, repeats: int, device: str, dtype: str) -> dict[str, Any]:
    """Run the benchmark and return the fused variant's measurements by mode, with its speed to the published one."""
    # On a GPU the variants that torch.compile compiles are printed for comparison.
    compiled = ["plain-compile", "reference-compile"] if device.startswith("cuda") else []
    results = benchmark(level, shape, batch, ["published", "fused", *compiled], repeats, device, dtype)
    for variant, found in results.items():
        ratios = {mode: round(measured["ratio_paired"], 3) for mode, measured in found.items() if mode != "memory"}
        print("  ", variant, ratios)
    fused, published = results["fused"], results["published"]
    for mode, measured in fused.items():
        if mode != "memory":
            measured["speed_of_published"] = published[mode]["min_ms"] / measured["min_ms"]
    return fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_device(parser, "cuda" if torch.cuda.is_available() else "cpu", "cuda if there is one, else cpu")
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image in pixels (default: 800 1333 on a GPU, 480 640 on a CPU)",
    )
    parser.add_argument(
        "--repeats", type=int, default=15, help="number of measurements of each variant (default: %(default)s)"
    )
    arguments = parser.parse_args()
    gpu = arguments.device.startswith("cuda")
    targets = CUDA if gpu else CPU
    shape = tuple(arguments.shape or ((800, 1333) if gpu else (480, 640)))
    dtypes, batches = (("float32", "float16"), (2, 8)) if gpu else (("float32",), (1,))
    levels = dict.fromkeys(target.level for target in targets)
    missed = 0
    for dtype, batch, level in itertools.product(dtypes, batches, levels):
        print(f"{level}, {shape[0]} x {shape[1]}, batch {batch}, {dtype}", flush=True)
        found = measure(level, shape, batch, arguments.repeats, arguments.device, dtype)
        for target in targets:
            if target.level == level:
                value = found[target.mode][target.quantity]
                missed += not target.met_by(value)
                print(target.line(value), flush=True)
    print(f"{missed} targets missed" if missed else "all targets met")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
