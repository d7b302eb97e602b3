"""Measure the accuracy of networks with shuffle attention by group of channels, over a data set.

accuracy_by_group.py CONFIG CHECKPOINT --variant "no shuffle" CONFIG CHECKPOINT

One layer of shuffle attention keeps a single group of its output's channels (or loses it), and the network is tested on
all images. A detector is tested on the images of its config, or on --annotations and --images; a classifier on a folder
with one folder of images for each class. The result is groups.csv and groups.png.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmdet.utils import register_all_modules
from tqdm import tqdm

from sa_mmdet.analysis.gates import layer_named
from sa_mmdet.analysis.network import Network
from sa_mmdet.evaluation.group_accuracy import MEASURES, LayerAccuracy, accuracy_by_group
from sa_mmdet.evaluation.group_plots import described, plot_accuracy, write_accuracy
from sa_mmdet.evaluation.labelled_images import labelled_images
from sa_mmdet.tool_options import add_device, at_least, check_names


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a detector or classifier with shuffle attention")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("--name", help="name of the network (default: its config's name)")
    variant: dict[str, Any] = dict(nargs=3, action="append", metavar=("NAME", "CONFIG", "CHECKPOINT"))
    text = "a further network, such as one that was trained without shuffle; may be given several times (default: none)"
    parser.add_argument("--variant", default=[], help=text, **variant)
    parser.add_argument(
        "--layer", help="the layer, by its dotted name (default: the backbone's last shuffle attention)"
    )
    parser.add_argument(
        "--measure",
        choices=MEASURES,
        default=MEASURES[0],
        help="whether a group is the only one that the layer's output keeps, or the one that it loses "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--images", help="folder of the images; for a classifier with a folder for each class (default: the config's)"
    )
    parser.add_argument("--annotations", help="COCO annotations, for detectors (default: the config's)")
    parser.add_argument("--limit", type=at_least(1), help="number of images, evenly from all of them (default: all)")
    parser.add_argument(
        "--resamples",
        type=at_least(2),
        default=200,
        help="resamples of the images for the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--out-dir", type=Path, default=Path("groups"), help="folder for the output (default: %(default)s)"
    )
    add_device(parser)
    return parser.parse_args()


def measure(arguments: argparse.Namespace, name: str, config: str, checkpoint: str) -> LayerAccuracy:
    network = Network(config, checkpoint, arguments.device)
    layer = layer_named(network.model, arguments.layer)
    images = labelled_images(config, network, arguments.annotations, arguments.images, arguments.limit)
    with tqdm(total=len(images.paths), desc=name, unit="image") as bar:
        return accuracy_by_group(network, layer, images, arguments.measure, arguments.resamples, bar.update)


def main() -> None:
    arguments = parse()
    register_all_modules(init_default_scope=False)
    first = (arguments.name or Path(arguments.config).stem, arguments.config, arguments.checkpoint)
    found = {}
    try:
        check_names([name for name, _, _ in (first, *arguments.variant)])
        for name, config, checkpoint in (first, *arguments.variant):
            found[name] = measure(arguments, name, config, checkpoint)
    except (OSError, ValueError) as error:
        sys.exit(f"accuracy_by_group: {error}")
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    write_accuracy(arguments.out_dir / "groups.csv", found, arguments.measure)
    plot_accuracy(arguments.out_dir / "groups.png", found, arguments.measure)
    print(f"groups.csv and groups.png in {arguments.out_dir}", *described(found, arguments.measure), sep="\n")


if __name__ == "__main__":
    main()
