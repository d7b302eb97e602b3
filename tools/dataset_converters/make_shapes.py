"""Make the demo's data set: circles, triangles and squares in COCO's format."""

import argparse

from sa_mmdet.coco_format import make_shapes
from sa_mmdet.tool_options import seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="the folder to make")
    parser.add_argument("--train", type=int, default=400, help="number of training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=80, help="number of held-out images (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random numbers (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        make_shapes(arguments.root, dict(train=arguments.train, val=arguments.val), arguments.seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
