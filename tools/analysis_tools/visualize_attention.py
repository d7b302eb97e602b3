"""Show what the gates of shuffle attention do on pictures, as plots and as CSV.

For each picture: PICTURE_channel.png (the channel gates by block and group), PICTURE_spatial.png (the spatial gates of
each stage's last block as maps), PICTURE_gates.csv, and with --groups PICTURE_groups.{png,csv}: what the best object
scores when a layer lets one group alone through, with the groups counted before and behind the shuffle.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.utils import register_all_modules
from tqdm import tqdm

from sa_mmdet.analysis.gates import Gates, attention_layers, gates_of, group_scores
from sa_mmdet.analysis.network import Network, sheet_names
from sa_mmdet.atomic_write import written_aside

MAPS = 3  # groups of which a map is shown


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110)
    pyplot().close(figure)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with written_aside(path) as aside, aside.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def statistics(found: list[Gates]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for gates in found:
        for branch, values in (("channel", gates.channel), ("spatial", gates.spatial)):
            for group, inside in enumerate(values):
                rows.append(
                    [gates.layer, branch, group, *(f"{f(inside):.6f}" for f in (np.mean, np.min, np.max, np.std))]
                )
    return rows


def plot_channel_gates(found: list[Gates], path: Path) -> None:
    """A row a block, a column a group: the mean of the group's channel gates."""
    groups = max(len(gates.channel) for gates in found)
    table = np.full((len(found), groups), np.nan)
    for row, gates in zip(table, found, strict=True):
        row[: len(gates.channel)] = gates.channel.mean(1)
    figure, panel = pyplot().subplots(figsize=(10, 0.3 * len(found) + 1.5), constrained_layout=True)
    image = panel.imshow(table, aspect="auto", cmap="viridis")
    panel.set_yticks(range(len(found)), [gates.layer.removeprefix("backbone.").removesuffix(".sa") for gates in found])
    panel.set_xlabel("group")
    figure.colorbar(image, label="channel gate, mean of a group")
    save(figure, path)


def plot_spatial_gates(found: list[Gates], picture: Any, path: Path) -> None:
    """Each stage's last block: the mean map, and those of the groups that differ most over the picture."""
    last = {gates.layer.removeprefix("backbone.").split(".")[0]: gates for gates in found}
    figure, panels = pyplot().subplots(
        len(last), MAPS + 2, figsize=(3 * (MAPS + 2), 2.6 * len(last)), squeeze=False, constrained_layout=True
    )
    for row, (stage, gates) in zip(panels, last.items(), strict=True):
        maps = gates.spatial.mean(1)
        chosen = np.argsort(-maps.std((1, 2)))[:MAPS]
        shown = [("mean of all groups", maps.mean(0)), *((f"group {group}", maps[group]) for group in chosen)]
        row[0].imshow(picture[..., ::-1])
        row[0].set_ylabel(stage)
        for panel, (title, values) in zip(row[1:], shown, strict=False):
            figure.colorbar(panel.imshow(values, cmap="viridis"), ax=panel, shrink=0.7)
            panel.set_title(title, fontsize=9)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    save(figure, path)


def analyse_groups(network: Network, sample: Any, image: Any, layer: str, target: Path) -> None:
    count = attention_layers(network.model)[layer].groups
    found = {}
    with tqdm(total=2 * count, desc="groups alone", leave=False) as bar:
        for where, shuffled in (("before the shuffle", False), ("behind the shuffle", True)):
            name, whole, found[where] = group_scores(network, sample, image, layer, shuffled, bar.update)
    rows = [
        [layer, where, group, f"{score:.6f}"] for where, scores in found.items() for group, score in enumerate(scores)
    ]
    write_csv(target.with_name(f"{target.name}_groups.csv"), ["layer", "groups", "group", f"score of {name}"], rows)
    figure, panel = pyplot().subplots(figsize=(10, 4), constrained_layout=True)
    for where, scores in found.items():
        panel.plot(scores, marker=".", label=f"one group alone, counted {where}")
    panel.axhline(whole, color="grey", label="all groups")
    panel.set_xlabel(f"group of {layer}")
    panel.set_ylabel(f"score of {name}")
    panel.legend()
    save(figure, target.with_name(f"{target.name}_groups.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("images", nargs="+", metavar="image")
    parser.add_argument("--groups", action="store_true", help="the analysis of single groups too; two runs a group")
    parser.add_argument("--layer", help="of that analysis; the last shuffle attention by default")
    parser.add_argument("--out-dir", type=Path, default=Path("attention"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    register_all_modules(init_default_scope=False)
    try:
        network = Network(arguments.config, arguments.checkpoint, arguments.device)
        layers = attention_layers(network.model)
        layer = arguments.layer or list(layers)[-1]
        if layer not in layers:
            raise ValueError(f"there is no shuffle attention {layer!r}; there are {', '.join(layers)}")
    except (OSError, ValueError) as error:
        sys.exit(f"visualize_attention: {error}")
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    skipped = []
    titles = sheet_names(arguments.images)
    for path, title in zip(tqdm(arguments.images, unit="picture"), titles, strict=True):
        try:
            picture, sample, image = network.read(path)
            found = gates_of(network, image)
            target = arguments.out_dir / title
            header = ["layer", "branch", "group", "mean", "minimum", "maximum", "deviation"]
            write_csv(target.with_name(f"{target.name}_gates.csv"), header, statistics(found))
            plot_channel_gates(found, target.with_name(f"{target.name}_channel.png"))
            plot_spatial_gates(found, picture, target.with_name(f"{target.name}_spatial.png"))
            if arguments.groups:
                analyse_groups(network, sample, image, layer, target)
        except ValueError as error:
            skipped.append(f"{path}: {error}".replace(f"{path}: {path}: ", f"{path}: "))
    print(f"{len(arguments.images) - len(skipped)} pictures in {arguments.out_dir}")
    if skipped:
        sys.exit("\n".join(f"visualize_attention: skipped {line}" for line in skipped))


if __name__ == "__main__":
    main()
