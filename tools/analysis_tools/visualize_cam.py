"""Show by Grad-CAM where detectors or classifiers looked for each object, one sheet a picture.

    visualize_cam.py CONFIG CHECKPOINT IMAGE... --arm SE CONFIG CHECKPOINT --arm SA CONFIG CHECKPOINT

draws a row for each network. An IMAGE may be a folder.
"""

import argparse
import sys
from pathlib import Path

from mmdet.utils import register_all_modules
from tqdm import tqdm

from sa_mmdet.analysis.activation_maps import METHODS, ActivationMaps, Found, sheet
from sa_mmdet.analysis.network import sheet_names

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def pictures(paths: list[str]) -> list[Path]:
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise ValueError(f"{path}: no such file")
        inside = [child for child in path.rglob("*") if child.suffix.lower() in SUFFIXES] if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path}: no pictures in it")
        found += sorted(inside)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("images", nargs="+", metavar="image")
    parser.add_argument("--name", help="of the first network; its config's name by default")
    parser.add_argument("--arm", nargs=3, action="append", default=[], metavar=("NAME", "CONFIG", "CHECKPOINT"))
    parser.add_argument("--layer", help="such as backbone.layer3.5; the backbone's last block by default")
    parser.add_argument("--method", default="gradcam", choices=METHODS, help="hirescam stays at the object's place")
    parser.add_argument("--top", type=int, default=4, help="objects of a picture")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score")
    parser.add_argument("--out-dir", type=Path, default=Path("cam"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top {arguments.top} must be 1 or more")
    register_all_modules(init_default_scope=False)
    arms = [(arguments.name or Path(arguments.config).stem, arguments.config, arguments.checkpoint), *arguments.arm]
    try:
        files = pictures(arguments.images)
        networks = {
            name: ActivationMaps(config, checkpoint, arguments.layer, arguments.method, arguments.device)
            for name, config, checkpoint in arms
        }
    except (OSError, ValueError) as error:
        sys.exit(f"visualize_cam: {error}")
    arguments.out_dir.mkdir(parents=True, exist_ok=True)
    skipped = []
    for file, title in zip(tqdm(files, unit="picture"), sheet_names(files), strict=True):
        rows: dict[str, list[Found]] = {}
        try:
            for name, network in networks.items():
                picture, rows[name] = network(file, arguments.top, arguments.threshold)
        except ValueError as error:
            skipped.append(str(error))
            continue
        sheet(arguments.out_dir / f"{title}.png", picture, rows, arguments.top)
    print(f"{len(files) - len(skipped)} sheets in {arguments.out_dir}")
    if skipped:
        sys.exit("\n".join(f"visualize_cam: skipped {line}" for line in skipped))


if __name__ == "__main__":
    main()
