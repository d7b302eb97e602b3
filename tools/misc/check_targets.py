"""Measure the time and memory of networks with attention, and compare them with this project's targets."""

import argparse
import itertools
import sys
from typing import Any, NamedTuple

import torch

from sa_mmdet.analysis.benchmark import benchmark
from sa_mmdet.analysis.benchmark_steps import DEPTHS
from sa_mmdet.tool_options import add_device


class Target(NamedTuple):
    """A limit on one of the benchmark's measurements of a variant."""

    variant: str
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
        return f"   {verdict} {self.variant} {self.mode} {self.quantity} {value:.3f} (target {sign} {self.limit})"


# The ratios are to the plain ResNet in the same run; the baked network's are to the plain one with folded norms.
CPU = [
    *(
        Target(variant, "backbone", mode, quantity, limit)
        for variants, limits in (
            (("fused",), (1.00, 0.98, 0.80)),
            (("none", "se", "eca"), (0.98, 0.97, 0.65)),
            (("sge", "cbam"), (1.05, 1.05, 0.95)),
        )
        for variant in variants
        for mode, quantity, limit in zip(
            ("training", "inference", "memory"), ("ratio_paired", "ratio_paired", "ratio"), limits, strict=True
        )
    ),
    Target("baked", "backbone", "inference", "ratio_to_folded", 1.02),
    Target("baked-onnxruntime", "backbone", "inference", "ratio_to_folded", 1.02),
]
CUDA = [
    Target("fused", "backbone", "inference", "ratio_paired", 1.00),
    Target("fused", "backbone", "training", "ratio_paired", 1.00),
    Target("fused", "backbone", "memory", "ratio", 1.00),
    Target("fused", "operator", "inference", "share_of_copy", 0.8, at_least=True),
    Target("fused", "operator", "backward", "share_of_copy", 0.8, at_least=True),
    Target("fused", "operator", "inference", "speed_of_published", 4.0, at_least=True),
    Target("fused", "operator", "backward", "speed_of_published", 4.0, at_least=True),
]


def measure(
    targets: list[Target],
    level: str,
    shape: tuple[int, int],
    batch: int,
    repeats: int,
    device: str,
    dtype: str,
    depth: int,
) -> dict[str, Any]:
    """Run the benchmark and return each variant's measurements by mode, with what is compared with other variants."""
    variants = [target.variant for target in targets if target.level == level]
    folded = {variant: variant.replace("baked", "folded") for variant in variants if "baked" in variant}
    variants += folded.values()
    # On a GPU the variants that torch.compile compiles are printed for comparison.
    variants += ["plain-compile", "reference-compile"] if device.startswith("cuda") else []
    variants += ["published"] if any(target.quantity == "speed_of_published" for target in targets) else []
    results = benchmark(level, shape, batch, list(dict.fromkeys(variants)), repeats, device, dtype, depth=depth)
    for variant, found in results.items():
        ratios = {mode: round(measured["ratio_paired"], 3) for mode, measured in found.items() if mode != "memory"}
        quartiles = {mode: found[mode]["ratio_paired_quartiles"] for mode in ratios}
        spread = ", ".join(f"{mode} {low:.3f}-{high:.3f}" for mode, (low, high) in quartiles.items())
        print("  ", variant, ratios, f"quartiles: {spread}")
    for found in results.values():
        for mode, measured in found.items():
            if mode in results.get("published", {}) and mode != "memory":
                measured["speed_of_published"] = results["published"][mode]["min_ms"] / measured["min_ms"]
    for variant, base in folded.items():
        own = results[variant]["inference"]
        own["ratio_to_folded"] = own["ratio_paired"] / results[base]["inference"]["ratio_paired"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_device(parser, "cuda" if torch.cuda.is_available() else "cpu", "cuda if there is one, else cpu")
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image in pixels (default: 800 1333, on a CPU 480 640, too)",
    )
    parser.add_argument(
        "--depth",
        nargs="+",
        type=int,
        choices=DEPTHS,
        default=list(DEPTHS),
        help="depths of the ResNet (default: all)",
    )
    parser.add_argument(
        "--repeats", type=int, default=15, help="number of measurements of each variant (default: %(default)s)"
    )
    arguments = parser.parse_args()
    gpu = arguments.device.startswith("cuda")
    targets = CUDA if gpu else CPU
    shapes = [tuple(arguments.shape)] if arguments.shape else [(800, 1333)] if gpu else [(480, 640), (800, 1333)]
    dtypes, batches = (("float32", "float16"), (2, 8)) if gpu else (("float32",), (1,))
    levels = dict.fromkeys(target.level for target in targets)
    missed = 0
    for depth, shape, dtype, batch, level in itertools.product(arguments.depth, shapes, dtypes, batches, levels):
        if level == "operator" and depth != arguments.depth[0]:
            continue  # it is the same for all depths
        print(f"{level}, ResNet-{depth}, {shape[0]} x {shape[1]}, batch {batch}, {dtype}", flush=True)
        found = measure(targets, level, shape, batch, arguments.repeats, arguments.device, dtype, depth)
        for target in targets:
            if target.level == level:
                value = found[target.variant][target.mode][target.quantity]
                missed += not target.met_by(value)
                print(target.line(value), flush=True)
    print(f"{missed} targets missed" if missed else "all targets met")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
