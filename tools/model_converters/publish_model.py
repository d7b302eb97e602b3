"""Reduce a checkpoint to its weights and a header (config, classes, versions, metrics), and add a hash to its name.

The file can be used like any checkpoint: in init_cfg, mim test, DetInferencer. --part backbone --naming released
restores the names that the attention modules' authors use.
"""

import argparse
import sys

from sa_mmdet.atomic_write import check_folder
from sa_mmdet.checkpoints import NAMINGS, PARTS, publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the checkpoint to read")
    parser.add_argument("target", help="the file to write: .pth, .pth.tar or .safetensors; the hash is added")
    parser.add_argument(
        "--part",
        default="model",
        choices=PARTS,
        help="what to write: all weights, or the backbone's (default: %(default)s)",
    )
    parser.add_argument(
        "--naming",
        default="mmdet",
        choices=NAMINGS,
        help="names of the backbone's weights: MMDetection's, or the authors' (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        check_folder(arguments.target)
        print(publish(arguments.source, arguments.target, arguments.part, arguments.naming))
    except (OSError, ValueError) as error:
        sys.exit(f"publish_model: {error}")


if __name__ == "__main__":
    main()
