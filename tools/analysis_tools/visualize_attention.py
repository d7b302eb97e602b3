"""Plot the gates of shuffle attention on images, and write them as CSV.

For each image: IMAGE_channel.png (the channel gates by block and group), IMAGE_spatial.png (maps of the spatial gates
of each stage's last block), IMAGE_gates.csv (statistics of all gates), and with --groups IMAGE_groups.{png,csv} (the
score of the best object if a layer's output keeps a single group, numbered before and after the shuffle).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmdet.utils import register_all_modules
from tqdm import tqdm

from sa_mmdet.analysis.gate_plots import (
    plot_channel_gates,
    plot_groups,
    plot_spatial_gates,
    write_csv,
    write_statistics,
)
from sa_mmdet.analysis.gates import attention_layers, gates_of, group_scores, layer_named
from sa_mmdet.analysis.network import Network, output_names
from sa_mmdet.tool_options import add_device


def analyse_groups(network: Network, sample: Any, inputs: Any, layer: str, target: str) -> None:
    count = attention_layers(network.model)[layer].groups
    found = {}
    with tqdm(total=2 * count, desc="single groups", leave=False) as bar:
        for where, shuffled in (("before the shuffle", False), ("after the shuffle", True)):
            name, whole, found[where] = group_scores(network, sample, inputs, layer, shuffled, bar.update)
    rows = [
        [layer, where, group, f"{score:.6f}"] for where, scores in found.items() for group, score in enumerate(scores)
    ]
    write_csv(Path(f"{target}_groups.csv"), ["layer", "groups", "group", f"score of {name}"], rows)
    plot_groups(Path(f"{target}_groups.png"), layer, name, whole, found)


def analyse(network: Network, path: str, layer: str | None, target: str) -> None:
    image, sample, inputs = network.read(path)
    found = gates_of(network, inputs)
    write_statistics(Path(f"{target}_gates.csv"), found)
    plot_channel_gates(Path(f"{target}_channel.png"), found)
    plot_spatial_gates(Path(f"{target}_spatial.png"), found, image)
    if layer:
        analyse_groups(network, sample, inputs, layer, target)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a detector or classifier with shuffle attention")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("images", nargs="+", metavar="image", help="image files")
    parser.add_argument(
        "--groups", action="store_true", help="analyse single groups too, two forwards per group (default: no)"
    )
    parser.add_argument("--layer", help="the layer of that analysis (default: the last of the backbone)")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("attention"), help="folder for the output (default: %(default)s)"
    )
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    register_all_modules(init_default_scope=False)
    try:
        network = Network(arguments.config, arguments.checkpoint, arguments.device)
        layer = layer_named(network.model, arguments.layer)
    except (OSError, ValueError) as error:
        sys.exit(f"visualize_attention: {error}")
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    skipped = []
    names = output_names(arguments.images)
    for path, name in zip(tqdm(arguments.images, unit="image"), names, strict=True):
        try:
            analyse(network, path, layer if arguments.groups else None, str(arguments.out_dir / name))
        except ValueError as error:
            skipped.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
    print(f"{len(arguments.images) - len(skipped)} images in {arguments.out_dir}")
    if skipped:
        sys.exit("\n".join(f"visualize_attention: skipped {line}" for line in skipped))


if __name__ == "__main__":
    main()
