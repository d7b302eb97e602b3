"""Draw where detectors or classifiers looked: one sheet per image, one row per network, one column per object.

visualize_cam.py CONFIG CHECKPOINT IMAGE... --variant SE CONFIG CHECKPOINT --variant SA CONFIG CHECKPOINT

Beside the sheets it writes objects.csv, with the layer, the score and the box of each object, and with --faithfulness
the areas of deletion and insertion, whose curves are in curves.json.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mmdet.utils import register_all_modules
from tqdm import tqdm

from sa_mmdet.analysis.activation_maps import METHODS, ActivationMaps
from sa_mmdet.analysis.cam_sheets import Tables, draw_sheet
from sa_mmdet.analysis.network import output_names
from sa_mmdet.analysis.objects_to_explain import Choice, check, explain
from sa_mmdet.coco_format import load_annotations
from sa_mmdet.evaluation.labelled_images import SUFFIXES
from sa_mmdet.tool_options import add_device, at_least, check_names


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
        "--layer",
        help="layer to explain, such as backbone.layer3.5 (default: for each object the last block of the deepest "
        "stage in which it spans at least 4 positions)",
    )
    parser.add_argument(
        "--method",
        default=METHODS[0],
        choices=METHODS,
        help="how to compute the maps; gradcam highlights other objects, too (default: %(default)s)",
    )
    parser.add_argument(
        "--annotations", help="COCO annotations whose objects to explain (default: objects that the networks find)"
    )
    parser.add_argument("--classes", nargs="+", default=[], metavar="CLASS", help="only these classes (default: all)")
    parser.add_argument(
        "--faithfulness",
        action="store_true",
        help="compute the areas of deletion and insertion, some hundred forwards per network and image (default: no)",
    )
    parser.add_argument(
        "--steps", type=at_least(2), default=20, help="steps of deletion and insertion (default: %(default)s)"
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
        variants = [first, *arguments.variant]
        check_names([name for name, _, _ in variants])
        choice = Choice(
            arguments.top,
            arguments.threshold,
            arguments.classes,
            load_annotations(arguments.annotations) if arguments.annotations else None,
            arguments.steps if arguments.faithfulness else 0,
        )
        networks = {
            name: ActivationMaps(config, checkpoint, arguments.layer, arguments.method, arguments.device)
            for name, config, checkpoint in variants
        }
        check(networks, choice)
    except (OSError, ValueError) as error:
        sys.exit(f"visualize_cam: {error}")
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    tables = Tables(arguments.out_dir)
    skipped = []
    for file, title in zip(tqdm(files, unit="image"), output_names(files), strict=True):
        try:
            columns, rows = explain(networks, file, choice)
        except ValueError as error:
            skipped.append(str(error))
            continue
        draw_sheet(arguments.out_dir / f"{title}.png", columns, rows)
        tables.add(file, columns, rows)
    print(f"{len(files) - len(skipped)} sheets in {arguments.out_dir}", *tables.means(), sep="\n")
    if skipped:
        sys.exit("\n".join(f"visualize_cam: skipped {line}" for line in skipped))


if __name__ == "__main__":
    main()
