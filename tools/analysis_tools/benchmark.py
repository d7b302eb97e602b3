"""Measure what attention costs in time and memory, beside the plain network in the same run."""

import argparse
import json
import platform
import sys
from typing import Any

import torch

from sa_mmdet.analysis.benchmark import ARMS, LEVELS, PLAIN, benchmark
from sa_mmdet.atomic_write import written_aside


def print_table(shape: list[int], batch: int, results: dict[str, Any]) -> None:
    print(f"\n{shape[0]} x {shape[1]}, batch {batch}: ratio to plain (fastest turns; median of turns), fastest turn")
    for arm, found in results.items():
        cells = []
        for mode in ("inference", "backward", "training"):
            if mode in found:
                figures = found[mode]
                cell = f"{mode} {figures['ratio_min']:6.3f} {figures['ratio_paired']:6.3f} {figures['min_ms']:9.2f} ms"
                share = figures.get("share_of_copy")
                cells.append(cell if share is None else f"{cell} {share:5.0%} of copy")
        if "memory" in found:
            cells.append(f"memory {found['memory']['ratio']:6.3f} {found['memory']['peak_mib']:8.1f} MiB")
        print(f"{arm:18}", " | ".join(cells), flush=True)


def plot(path: str, runs: list[dict[str, Any]]) -> None:
    """Ratio to plain against the number of pixels in a batch, a panel a quantity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    keys = {"inference": "ratio_min", "training": "ratio_min", "memory": "ratio"}
    measured = [mode for mode in keys if mode in runs[0]["results"][PLAIN]]
    figure, panels = pyplot.subplots(
        1, len(measured), figsize=(4 * len(measured), 4), squeeze=False, constrained_layout=True
    )
    for panel, mode in zip(panels[0], measured, strict=True):
        key = keys[mode]
        for arm in runs[0]["results"]:
            points = sorted(
                (run["batch"] * run["shape"][0] * run["shape"][1] / 1e6, run["results"][arm][mode][key])
                for run in runs
                if mode in run["results"][arm]
            )
            panel.plot(*zip(*points, strict=True), marker="o", label=arm) if points else None
        panel.set_title(f"{mode}, ratio to plain")
        panel.set_xlabel("megapixels in a batch")
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("--shape", nargs=2, type=int, action="append", help="height width; may be given several times")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--arms", nargs="+", default=[PLAIN, "reference", "fused", "se"], help=f"of {', '.join(ARMS)}")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="float32, or float16 or bfloat16 for mixed precision")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--json", help="file for all figures")
    parser.add_argument("--png", help="file for a plot of the ratios against the size")
    arguments = parser.parse_args()
    runs = []
    for shape in arguments.shape or [[480, 640]]:
        for batch in arguments.batch:
            try:
                results = benchmark(
                    arguments.level,
                    tuple(shape),
                    batch,
                    arguments.arms,
                    arguments.repeats,
                    arguments.device,
                    arguments.dtype,
                    not arguments.no_memory,
                )
            except ValueError as error:
                parser.error(str(error))
            print_table(shape, batch, results)
            runs.append(dict(shape=shape, batch=batch, results=results))
    cpu = platform.processor() or f"a {platform.machine()} CPU"
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else cpu
    threads = torch.get_num_threads()
    header = dict(command=sys.argv[1:], machine=machine, threads=threads, torch=torch.__version__)
    if arguments.json:
        with written_aside(arguments.json) as aside:
            aside.write_text(json.dumps(dict(header, runs=runs), indent=2))
    if arguments.png:
        plot(arguments.png, runs)


if __name__ == "__main__":
    main()
