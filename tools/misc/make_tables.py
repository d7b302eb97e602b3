"""Write the result tables of configs/*/README.md from the metafiles and the paper's results.

Run it in a source checkout after a metafile has changed; a test fails when a table is out of date.
"""

import argparse
import csv
import re
from pathlib import Path

from mmengine.fileio import load

from sa_mmdet.atomic_write import atomic_write_text
from sa_mmdet.attention import attention_types

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
# The attention by its abbreviation in the names of configs.
ATTENTION = {"": "none"} | {kind._abbr_: kind.label for kind in attention_types().values()}
# The paper's names of the ablations and methods, in the first column of its tables.
ABLATION = {"without-norm": "w/o_gn", "without-shuffle": "w/o_shuffle", "without-fc": "w/o_Fc", "conv": "1x1_conv"}
METHOD = {"": "ResNet", "se": "SENet", "eca": "ECA-Net", "sge": "SGE-Net", "cbam": "CBAM", "sa": "SA-Net"}
# The column of the paper's CSV, and the metric's name in a metafile (after "box" or "mask").
METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_s": "APS", "ap_m": "APM", "ap_l": "APL"}


def paper_rows(table: str) -> list[dict[str, str]]:
    with (CONFIGS / "_paper_" / table).open(newline="") as file:
        return list(csv.DictReader(file))


def find_row(rows: list[dict[str, str]], **keys: str) -> dict[str, str]:
    """The paper's row, or an empty one if the paper has none."""
    return next((row for row in rows if all(row.get(k, v) == v for k, v in keys.items())), {})


def table(folder: Path) -> str:
    """One line per config with the paper's results, and one with ours if the metafile has any."""
    metafile = load(folder / "metafile.yml")
    detector = metafile["Collections"][0]["Name"].removesuffix(" with attention")
    boxes, masks = paper_rows("table3_coco_detection.csv"), paper_rows("table4_coco_instance_segmentation.csv")
    # For each kind of metric its task in a metafile, and the paper's rows.
    kinds = [("box", "Object Detection", boxes)]
    if folder.name == "mask_rcnn":
        kinds.append(("mask", "Instance Segmentation", masks))
    header = ["config", "attention", "results", "Param. (M)", "GFLOPs"]
    header += [f"{kind} {name}" for kind, _, _ in kinds for name in METRICS.values()]
    lines = [header, ["---"] * len(header)]
    for model in metafile["Models"]:
        variant, _, depth = model["Name"].split("_")[1].rpartition("-")
        keys = dict(detector=detector, backbone=depth.replace("r", "ResNet-"), attention=ATTENTION[variant])
        name = [f"[{model['Name']}]({model['Name']}.py)", ATTENTION[variant]]
        found = [find_row(rows, **keys) for _, _, rows in kinds]
        values = [row.get(column, "") for row in found for column in METRICS]
        source = "paper" if any(found) else "not in the paper"
        lines.append([*name, source, found[0].get("params_m", ""), found[0].get("gflops", ""), *values])
        results = {result["Task"]: result["Metrics"] for result in model.get("Results", [])}
        if results:
            values = [str(results.get(task, {}).get(f"{k} {m}", "")) for k, task, _ in kinds for m in METRICS.values()]
            lines.append([*name, "ours", "", "", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def classification_table(folder: Path) -> str:
    """Like :func:`table`, for the classifiers of the paper's Tables 1 and 2."""
    ablations, methods = paper_rows("table1_ablation_imagenet.csv"), paper_rows("table2_imagenet.csv")
    header = ["config", "attention", "results", "Param. (M)", "GFLOPs", "top-1", "top-5"]
    lines = [header, ["---"] * len(header)]
    for model in load(folder / "metafile.yml")["Models"]:
        match = re.fullmatch(r"(?:([a-z]+)-)?r(\d+)(?:-([a-z-]+))?_8xb32_in1k", model["Name"])
        if match is None:  # an example for other data
            continue
        variant, depth, ablation = match.groups(default="")
        if ablation:
            found = find_row(ablations, method=ABLATION[ablation])
        else:
            found = find_row(methods, method=METHOD.get(variant, ""), backbone=f"ResNet-{depth}")
        name = [f"[{model['Name']}]({model['Name']}.py)", " ".join((ATTENTION[variant], ablation)).strip()]
        columns = ("params_m", "gflops", "top1", "top5")
        lines.append([*name, "paper", *(found.get(column, "") for column in columns)])
        for result in model.get("Results", []):
            values = [str(result["Metrics"].get(metric, "")) for metric in ("Top 1 Accuracy", "Top 5 Accuracy")]
            lines.append([*name, "ours", "", "", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def senet_table(folder: Path) -> str:
    """One line per row of the SENet article's tables with its config, and one with ours if the metafile has any."""
    results = {model["Name"]: model.get("Results", []) for model in load(folder / "metafile.yml")["Models"]}
    header = ["table", "row", "config", "results", "Param. (M)", "GFLOPs", "top-1 error", "top-5 error"]
    lines = [header, ["---"] * len(header)]
    for row in paper_rows("senet_imagenet.csv"):
        path = CONFIGS / f"{row['config']}.py"
        link = path.name if path.parent == folder else f"../{row['config']}.py"
        name = [f"{row['table']}, {row['study']}", row["row"], f"[{path.stem}]({link})"]
        lines.append([*name, "article", *(row[key] for key in ("params_m", "gflops", "top1_error", "top5_error"))])
        for result in results.get(path.stem, []):
            errors = (100 - result["Metrics"][f"Top {k} Accuracy"] for k in (1, 5))
            lines.append([*name, "ours", "", "", *(f"{error:.2f}" for error in errors)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def error_table(folder: Path) -> str:
    """Like :func:`table`, for the classifiers of the SE paper's tables, which give errors."""
    rows = paper_rows("senet_cifar_places.csv")
    errors = {"top1_error": "Top 1 Error", "top5_error": "Top 5 Error"}
    header = ["config", "data", "attention", "results", "top-1 error", "top-5 error"]
    lines = [header, ["---"] * len(header)]
    for model in load(folder / "metafile.yml")["Models"]:
        network, *_, data = model["Name"].split("_")
        variant, _, depth = network.rpartition("r")
        attention = ATTENTION[variant.rstrip("-")]
        dataset = re.sub(r"(\d+)", r"-\1", data).replace("cifar", "CIFAR").replace("places", "Places")
        found = find_row(rows, dataset=dataset, backbone=f"ResNet-{depth}", attention=attention)
        name = [f"[{model['Name']}]({model['Name']}.py)", dataset, attention]
        lines.append([*name, "paper" if found else "not in the paper", *(found.get(column, "") for column in errors)])
        for result in model.get("Results", []):
            lines.append([*name, "ours", *(str(result["Metrics"].get(metric, "")) for metric in errors.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES = dict(imagenet=classification_table, senet=senet_table, cifar=error_table, places365=error_table)


def updated(folder: Path) -> str:
    """The text of a config folder's README, with a new table."""
    before, _, rest = (folder / "README.md").read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    new = TABLES.get(folder.name, table)(folder)
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def folders() -> list[Path]:
    """The config folders whose README has a table."""
    return sorted(path.parent for path in CONFIGS.glob("*/README.md") if BEGIN in path.read_text())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for folder in folders():
        text = updated(folder)
        atomic_write_text(folder / "README.md", text)
        print(f"{folder / 'README.md'}")


if __name__ == "__main__":
    main()
