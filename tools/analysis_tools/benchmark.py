"""Measure what attention costs in time and memory, beside the plain network in the same run."""

import argparse
import json
import platform
import sys
from typing import Any

import torch

from sa_mmdet.analysis.benchmark import benchmark
from sa_mmdet.analysis.benchmark_plots import plot_ratios
from sa_mmdet.analysis.benchmark_steps import DEPTHS, LEVELS, PLAIN, VARIANTS
from sa_mmdet.atomic_write import atomic_write_text, check_folder
from sa_mmdet.tool_options import add_device

WIDTH = 18  # characters of a variant's name


def print_table(shape: list[int], batch: int, results: dict[str, Any]) -> None:
    print(f"\n{shape[0]} x {shape[1]}, batch {batch}: ratios to plain: fastest turns, and all turns")
    modes = [mode for mode in ("inference", "backward", "training") if mode in results[PLAIN]]
    shares = [mode for mode in modes if "share_of_copy" in results[PLAIN][mode]]
    columns = dict.fromkeys(modes, f"{'fastest':>7} {'median':>7} {'quartiles':>11} {'time, ms':>9}")
    columns |= {mode: f"{columns[mode]} {'of copy':>7}" for mode in shares}
    if "memory" in results[PLAIN]:
        columns["memory"] = f"{'ratio':>7} {'peak, MiB':>9}"
    print(" | ".join([" " * WIDTH, *(f"{name:{len(text)}}" for name, text in columns.items())]))
    print(" | ".join([f"{'variant':{WIDTH}}", *columns.values()]))
    for variant, found in results.items():
        cells = []
        for mode in modes:
            if mode not in found:
                cells.append(" " * len(columns[mode]))
                continue
            measured = found[mode]
            low, high = measured["ratio_paired_quartiles"]
            ratios = f"{measured['ratio_min']:7.3f} {measured['ratio_paired']:7.3f} {low:5.3f}-{high:5.3f}"
            cells.append(f"{ratios} {measured['min_ms']:9.2f}")
            cells[-1] += f" {measured['share_of_copy']:7.0%}" if mode in shares else ""
        if "memory" in found:
            cells.append(f"{found['memory']['ratio']:7.3f} {found['memory']['peak_mib']:9.1f}")
        print(" | ".join([f"{variant:{WIDTH}}", *cells]), flush=True)


def print_operators(shape: list[int], batch: int, results: dict[str, Any]) -> None:
    print(f"\n{shape[0]} x {shape[1]}, batch {batch}: medians under the profiler. Columns: the ratio to plain with the")
    print("time of plain's convolutions; convolutions + everything else; the slowest operators of the latter")
    for mode in ("inference", "backward", "training"):
        for variant, found in results.items():
            measured = found.get(mode, {})
            if "rest_ms" not in measured:
                continue
            named = [(name.rstrip(">").rpartition("::")[2], time) for name, time in measured["operators_ms"].items()]
            most = [f"{name} {time:.1f}" for name, time in named[:4]]
            times = f"{measured['convolutions_ms']:8.1f} + {measured['rest_ms']:6.1f} ms"
            kept = f"; {measured['kept_mib']:.0f} MiB are kept for the gradients" if measured["kept_mib"] else ""
            print(f"{mode:9} {variant:{WIDTH}} {measured['ratio_rest']:6.3f} {times}: {', '.join(most)}{kept}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "level", choices=LEVELS, help="what to measure: the ends of the blocks, ResNet, or RetinaNet with ResNet"
    )
    parser.add_argument(
        "--depth", type=int, choices=DEPTHS, default=50, help="depth of the ResNet (default: %(default)s)"
    )
    parser.add_argument(
        "--shape",
        nargs=2,
        type=int,
        action="append",
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image in pixels; may be given several times (default: 480 640)",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="numbers of images per batch (default: 1)")
    default = [PLAIN, "reference", "fused", "se"]
    parser.add_argument(
        "--variants",
        nargs="+",
        default=default,
        metavar="VARIANT",
        help=f"what to measure beside plain, of {', '.join(VARIANTS)} (default: {' '.join(default)})",
    )
    parser.add_argument("--arms", dest="variants", nargs="+", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    parser.add_argument(
        "--repeats", type=int, default=10, help="number of measurements of each variant (default: %(default)s)"
    )
    add_device(parser, "cuda" if torch.cuda.is_available() else "cpu", "cuda if there is one, else cpu")
    parser.add_argument(
        "--dtype",
        default="float32",
        help="data type: float32, or float16 or bfloat16 for mixed precision (default: %(default)s)",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory (default: measure it)")
    parser.add_argument(
        "--operators",
        action="store_true",
        help="measure each operator's time, too, with PyTorch's profiler on a CPU: how much is not convolutions, which "
        "take most of the time, vary most and are the same in all variants (default: do not)",
    )
    parser.add_argument("--json", help="file for all measurements (default: none)")
    parser.add_argument("--png", help="file for a plot of the ratios by size (default: none)")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    try:
        check_folder(arguments.json)
        check_folder(arguments.png)
    except FileNotFoundError as error:
        sys.exit(f"benchmark: {error}")
    runs = []
    for shape in arguments.shape or [[480, 640]]:
        for batch in arguments.batch:
            try:
                results = benchmark(
                    arguments.level,
                    tuple(shape),
                    batch,
                    arguments.variants,
                    arguments.repeats,
                    arguments.device,
                    arguments.dtype,
                    not arguments.no_memory,
                    arguments.depth,
                    arguments.operators,
                )
            except ValueError as error:
                parser().error(str(error))
            print_table(shape, batch, results)
            if arguments.operators:
                print_operators(shape, batch, results)
            runs.append(dict(shape=shape, batch=batch, results=results))
    cpu = platform.processor() or f"a {platform.machine()} CPU"
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else cpu
    threads = torch.get_num_threads()
    header = dict(
        command=sys.argv[1:], depth=arguments.depth, machine=machine, threads=threads, torch=torch.__version__
    )
    if arguments.json:
        atomic_write_text(arguments.json, json.dumps(dict(header, runs=runs), indent=2))
    if arguments.png:
        plot_ratios(arguments.png, runs)


if __name__ == "__main__":
    main()
