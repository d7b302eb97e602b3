"""Cut the objects of a data set in COCO's format out of their images, into a folder per class, to train a classifier.

Crowds and objects that are to be ignored are left out. Divide the folder with split_folder.py; or make the folders
FOLDER/train and FOLDER/val from two files of annotations.
"""

import argparse
from pathlib import Path

from sa_mmdet.image_folders import crop_objects
from sa_mmdet.messages import printable
from sa_mmdet.tool_options import at_least, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path, help="file in COCO's format")
    parser.add_argument("images", type=Path, help="folder of its images")
    parser.add_argument("--out", type=Path, required=True, help="folder to make (required)")
    parser.add_argument("--classes", nargs="+", default=[], help="names of the classes (default: all)")
    text = "shorter side of an object's box in pixels, at least (default: %(default)s)"
    parser.add_argument("--min-size", type=at_least(1), default=32, help=text)
    text = "objects of a class at most, drawn at random (default: all)"
    parser.add_argument("--per-class", type=at_least(1), metavar="N", help=text)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draw (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        found = crop_objects(**vars(arguments))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name, count in found.items():
        print(f"{printable(name)}: {count} images")


if __name__ == "__main__":
    main()
