"""Fold batch norms and channel shuffles of a detector's SAResNet into its convolutions, for inference.

Writes the weights, and a config that uses them to the same path with the suffix .py.
"""

import argparse
import sys
from pathlib import Path

from mmengine.config import Config

from sa_mmdet.atomic_write import atomic_write, check_folder
from sa_mmdet.checkpoints import write
from sa_mmdet.deployment import bake_detector

TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the model's config")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("target", type=Path, help="the file of weights to write: .pth or .safetensors")
    arguments = parser.parse_args()
    try:
        check_folder(arguments.target)
        cfg, state, difference = bake_detector(Config.fromfile(arguments.config), arguments.checkpoint)
        if not difference <= TOLERANCE:
            sys.exit(
                f"bake_shuffle: the folded backbone's outputs differ by {difference:.1e}, more than {TOLERANCE}: "
                "nothing was written"
            )
        write(arguments.target, state, dict(cfg=cfg.pretty_text, baked=True))
        config = arguments.target.with_suffix(".py")
        with atomic_write(config) as temporary:
            cfg.dump(temporary)
    except (OSError, ValueError) as error:
        sys.exit(f"bake_shuffle: {error}")
    print(f"largest difference of an output, relative to the largest output: {difference:.1e}")
    print(f"{arguments.target} and {config}")


if __name__ == "__main__":
    main()
