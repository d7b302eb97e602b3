"""Write the result tables of configs/*/README.md from the metafiles and the paper's figures.

Run it from a source checkout after a metafile changed; a test fails when a table is stale.
"""

import argparse
import csv
from pathlib import Path

from mmengine.fileio import load

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
BEGIN, END = "<!-- table -->", "<!-- /table -->"
ATTENTION = {"": "none", "se": "SE", "eca": "ECA", "sge": "SGE", "cbam": "CBAM", "sa": "SA"}
# Column of the paper's CSV, and the metric's name in a metafile (after "box" or "mask").
METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_s": "APS", "ap_m": "APM", "ap_l": "APL"}


def paper_rows(table: str) -> list[dict[str, str]]:
    with (CONFIGS / "_paper_" / table).open(newline="") as file:
        return list(csv.DictReader(file))


def find_row(rows: list[dict[str, str]], **keys: str) -> dict[str, str]:
    """The paper's row, or an empty one where the paper has none."""
    return next((row for row in rows if all(row.get(k, v) == v for k, v in keys.items())), {})


def table(folder: Path) -> str:
    """One line a config with the paper's figures, and one with ours where the metafile has results."""
    metafile = load(folder / "metafile.yml")
    detector = metafile["Collections"][0]["Name"].removesuffix(" with attention")
    boxes, masks = paper_rows("table3_coco_detection.csv"), paper_rows("table4_coco_instance_segmentation.csv")
    # Kind of figure, the task under which a metafile holds it, the paper's rows.
    kinds = [("box", "Object Detection", boxes)]
    if folder.name == "mask_rcnn":
        kinds.append(("mask", "Instance Segmentation", masks))
    header = ["config", "attention", "figures", "Param. (M)", "GFLOPs"]
    header += [f"{kind} {name}" for kind, _, _ in kinds for name in METRICS.values()]
    lines = [header, ["---"] * len(header)]
    for model in metafile["Models"]:
        arm, _, depth = model["Name"].split("_")[1].rpartition("-")
        keys = dict(detector=detector, backbone=depth.replace("r", "ResNet-"), attention=ATTENTION[arm])
        name = [f"[{model['Name']}]({Path(model['Config']).name})", ATTENTION[arm]]
        found = [find_row(rows, **keys) for _, _, rows in kinds]
        figures = [row.get(column, "") for row in found for column in METRICS]
        source = "paper" if any(found) else "not in the paper"
        lines.append([*name, source, found[0].get("params_m", ""), found[0].get("gflops", ""), *figures])
        results = {result["Task"]: result["Metrics"] for result in model.get("Results", [])}
        if results:
            figures = [str(results.get(task, {}).get(f"{k} {m}", "")) for k, task, _ in kinds for m in METRICS.values()]
            lines.append([*name, "ours", "", "", *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(folder: Path) -> str:
    """The README of a config folder with its table made anew."""
    before, _, rest = (folder / "README.md").read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(folder)}\n{END}{after}"


def folders() -> list[Path]:
    return sorted(path.parent for path in CONFIGS.glob("*/README.md") if BEGIN in path.read_text())


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for folder in folders():
        text = updated(folder)
        aside = folder / "README.md.new"
        aside.write_text(text)
        aside.replace(folder / "README.md")
        print(f"{folder / 'README.md'}")


if __name__ == "__main__":
    main()
