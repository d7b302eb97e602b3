"""Export a detector's backbone and neck to ONNX, with dynamic batch size, height and width.

The shuffles and batch norms of an SAResNet are folded into its convolutions. --check compares the outputs of the file
in ONNX Runtime with those of the network in PyTorch as it was trained.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import mmcv
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor

from sa_mmdet.atomic_write import check_folder
from sa_mmdet.deployment import export_onnx, largest_difference, load

TOLERANCE = 1e-4


def images(cfg: Config, paths: list[str]) -> Iterator[Tensor]:
    """Read image files and prepare them with the detector's own preprocessor."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        preprocess: Any = MODELS.build(cfg.model.data_preprocessor)
    for path in paths:
        image = mmcv.imread(path)
        if image is None:
            raise ValueError(f"{path}: is not a readable image")
        yield preprocess(dict(inputs=[torch.from_numpy(image).permute(2, 0, 1)], data_samples=None))["inputs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the detector's config")
    parser.add_argument("checkpoint", help="its weights")
    parser.add_argument("target", help="the .onnx file to write")
    parser.add_argument("--backbone-only", action="store_true", help="export without the neck (default: with it)")
    parser.add_argument(
        "--keep-shuffle", action="store_true", help="export the backbone as it was trained (default: folded)"
    )
    parser.add_argument("--check", nargs="+", default=[], metavar="IMAGE", help="images to compare on (default: none)")
    arguments = parser.parse_args()
    try:
        check_folder(arguments.target)
        cfg = Config.fromfile(arguments.config)
        neck = not arguments.backbone_only
        model = load(cfg, arguments.checkpoint, not arguments.keep_shuffle, neck)
        if model.obstacle:
            print(f"exported as it was trained, not folded: {model.obstacle}")
        names = export_onnx(model, arguments.target)
        print(f"{arguments.target}: image -> {', '.join(names)}")
        if arguments.check:
            trained = load(cfg, arguments.checkpoint, neck=neck)
            difference = largest_difference(trained, arguments.target, images(cfg, arguments.check))
            print(
                f"largest difference on {len(arguments.check)} images, relative to the largest output: {difference:.1e}"
            )
            if not difference <= TOLERANCE:
                sys.exit(f"export_onnx: the file's outputs differ by more than {TOLERANCE}")
    except (OSError, ValueError) as error:
        sys.exit(f"export_onnx: {error}")


if __name__ == "__main__":
    main()
