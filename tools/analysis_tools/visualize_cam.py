"""Draw the Grad-CAM map of each object that detectors or classifiers find: one sheet per image, one row per network.

visualize_cam.py CONFIG CHECKPOINT IMAGE... --variant SE CONFIG CHECKPOINT --variant SA CONFIG CHECKPOINT
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmdet.utils import register_all_modules
from tqdm import tqdm

from sa_mmdet.analysis.activation_maps import METHODS, ActivationMaps, Found, draw_sheet
from sa_mmdet.analysis.network import output_names
from sa_mmdet.tool_options import add_device, at_least

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def image_files(paths: list[str]) -> list[Path]:
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        inside = [child for child in path.rglob("*") if child.suffix.lower() in SUFFIXES] if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: contains no images ({', '.join(SUFFIXES)})")
        found += sorted(inside)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config of a detector or classifier")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("images", nargs="+", metavar="image", help="image files, or folders of them")
    parser.add_argument("--name", help="name of the first network (default: its config's name)")
    variant: dict[str, Any] = dict(nargs=3, action="append", metavar=("NAME", "CONFIG", "CHECKPOINT"))
    parser.add_argument(
        "--variant", default=[], help="a further network; may be given several times (default: none)", **variant
    )
    parser.add_argument("--arm", dest="variant", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **variant)
    parser.add_argument(
        "--layer", help="layer to explain, such as backbone.layer3.5 (default: the backbone's last block)"
    )
    parser.add_argument(
        "--method",
        default="gradcam",
        choices=METHODS,
        help="how to compute the maps; hirescam highlights no other objects (default: %(default)s)",
    )
    parser.add_argument("--top", type=at_least(1), default=4, help="objects per image (default: %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score of an object (default: %(default)s)")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("cam"), help="folder for the sheets (default: %(default)s)"
    )
    add_device(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    register_all_modules(init_default_scope=False)
    first = (arguments.name or Path(arguments.config).stem, arguments.config, arguments.checkpoint)
    try:
        files = image_files(arguments.images)
        networks = {
            name: ActivationMaps(config, checkpoint, arguments.layer, arguments.method, arguments.device)
            for name, config, checkpoint in [first, *arguments.variant]
        }
    except (OSError, ValueError) as error:
        sys.exit(f"visualize_cam: {error}")
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    skipped = []
    for file, title in zip(tqdm(files, unit="image"), output_names(files), strict=True):
        rows: dict[str, list[Found]] = {}
        try:
            for name, network in networks.items():
                image, rows[name] = network(file, arguments.top, arguments.threshold)
        except ValueError as error:
            skipped.append(str(error))
            continue
        draw_sheet(arguments.out_dir / f"{title}.png", image, rows, arguments.top)
    print(f"{len(files) - len(skipped)} sheets in {arguments.out_dir}")
    if skipped:
        sys.exit("\n".join(f"visualize_cam: skipped {line}" for line in skipped))


if __name__ == "__main__":
    main()
