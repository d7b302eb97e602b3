"""Divide a folder with a folder of images per class into training and validation, by lists, without copying an image.

Writes train.txt, val.txt and classes.txt, which configs/imagenet/*_folder.py read from the folder that IMAGE_FOLDER
names, and MMPretrain's CustomDataset by ann_file. The same seed gives the same lists on every machine.
"""

import argparse
from pathlib import Path

from sa_mmdet.image_folders import split_folder
from sa_mmdet.messages import listed, printable
from sa_mmdet.tool_options import probability, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--out", type=Path, help="folder for the lists (default: the folder of the images)")
    text = "share of each class's images for training, 0 to 1 (default: %(default)s)"
    parser.add_argument("--ratio", type=probability, default=0.8, help=text)
    parser.add_argument("--seed", type=seed, default=0, help="seed of the draw (default: %(default)s)")
    arguments = parser.parse_args()
    out = arguments.out or arguments.folder
    try:
        found = split_folder(arguments.folder, out, arguments.ratio, arguments.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for name, images in found.train.items():
        print(f"{printable(name)}: {len(images)} for training, {len(found.val[name])} for validation")
    train, val = (sum(map(len, part.values())) for part in (found.train, found.val))
    print(f"{out}: train.txt with {train} images, val.txt with {val}, classes.txt with {len(found.train)} classes")
    if found.others:
        print(f"left out, {len(found.others)} files that are no images of a class: {listed(found.others)}")


if __name__ == "__main__":
    main()
