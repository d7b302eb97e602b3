"""Count the parameters and multiply-adds of configs, by part; needs no data, weights or GPU."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from sa_mmdet.analysis import Complexity
from sa_mmdet.analysis.complexity import CONVENTIONS
from sa_mmdet.evaluation.costs import count

COLUMNS = [
    "config",
    "params_m",
    "trainable_m",
    "attention_m",
    "backbone_g",
    "neck_g",
    "heads_g",
    "attention_g",
    "total_g",
    "not_counted",
]


def row(path: str, found: Complexity) -> dict[str, Any]:
    parts = [found.parameters / 1e6, found.trainable / 1e6, found.attention_parameters / 1e6]
    parts += [part / 1e9 for part in (found.backbone, found.neck, found.heads, found.attention, found.total)]
    values = [Path(path).stem, *(round(part, 6) for part in parts), "; ".join(found.not_counted)]
    return dict(zip(COLUMNS, values, strict=True))


def write(rows: list[dict[str, Any]], style: str) -> None:
    if style == "json":
        print(json.dumps(rows, indent=2))
    elif style == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        width = max(len(row["config"]) for row in rows)
        columns = COLUMNS[1:-1]
        print("config".ljust(width), *(column.rjust(11) for column in columns))
        for values in rows:
            print(values["config"].ljust(width), *(f"{values[column]:11.4f}" for column in columns))
        print(
            "\nparameters (_m) in millions, multiply-adds (_g) for one image in billions, the parts without attention"
        )
        for values in rows:
            if values["not_counted"]:
                print(f"{values['config']}: not counted: {values['not_counted']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="configs whose model is a detector, a classifier or a backbone"
    )
    parser.add_argument(
        "--shape",
        nargs="+",
        type=int,
        help="height and width in pixels, or one number for both (default: 800 1280 for detectors, 224 for backbones)",
    )
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="how to print it (default: %(default)s)"
    )
    parser.add_argument(
        "--convention",
        choices=CONVENTIONS,
        default="mmengine",
        help="count as MMEngine does, or as the papers of SA-Net or SENet did (default: %(default)s)",
    )
    arguments = parser.parse_args()
    shape = None
    if arguments.shape:
        if len(arguments.shape) > 2:
            parser.error(f"--shape takes one or two numbers, got {len(arguments.shape)}")
        shape = (arguments.shape[0], arguments.shape[-1])
    rows = []
    for path in arguments.configs:
        try:
            config = Config.fromfile(path)
            if "model" not in config:
                raise ValueError("has no model")
            init_default_scope(config.get("default_scope", "mmdet"))
            rows.append(row(path, count(config, shape, arguments.convention)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
            parser.error(f"{path}: {error}")
    write(rows, arguments.format)


if __name__ == "__main__":
    main()
