"""Convert released weights of a ResNet with or without attention for MMDetection's configs.

Takes the files of the authors of SA-Net, SE (both), ECA, SGE, CBAM and BAM and of torchvision, timm, MMPretrain and
MMDetection: .pth, .pth.tar and .safetensors. Loads nothing but tensors.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from sa_mmdet import __version__
from sa_mmdet.checkpoints import ATTENTIONS, Converted, convert, write
from sa_mmdet.checkpoints.conversion import digest


def report(converted: Converted, target: str) -> None:
    """Print what maps where, blocks of a kind as one line, what is left over, and the config to use."""

    def pattern(key: str) -> str:
        return re.sub(
            r"layer\d\.\d+\.", "layer*.*.", re.sub(r"layer\d\.([^\d])", r"layer*.\1", re.sub(r"bam\d", "bam*", key))
        )

    pairs = Counter(
        (pattern(source), pattern(name if name.startswith("head.") else f"backbone.{name}"))
        for name, source in converted.sources.items()
    )
    width = max(len(source) for source, _ in pairs)
    for (source, name), count in pairs.items():
        print(f"{source:{width}} -> {name}{f'  ({count})' if count > 1 else ''}")
    if converted.added:
        print(f"added: {len(converted.added)} counters num_batches_tracked, which the file lacks")
    print(f"left over: {', '.join(converted.left_over) or 'nothing'}")
    options = ", ".join(f"{key}={value!r}" for key, value in converted.backbone.items())
    print(f"backbone=dict({options}, init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint='{target}'))")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target", help="the file to write: .pth, or .safetensors")
    parser.add_argument("--attention", default="auto", choices=["auto", *ATTENTIONS], help="what must be in it")
    parser.add_argument("--depth", default="auto", choices=["auto", "18", "34", "50", "101", "152"])
    parser.add_argument("--prefix", help="of the backbone's keys, such as 'backbone.' in a detector's file")
    parser.add_argument("--dtype", choices=["float32"], help="widen half-precision weights")
    arguments = parser.parse_args()
    try:
        converted = convert(arguments.source, arguments.attention, arguments.depth, arguments.prefix, arguments.dtype)
        meta = dict(
            backbone=converted.backbone,
            source=Path(arguments.source).name,
            source_sha256=digest(arguments.source),
            sa_mmdet_version=__version__,
        )
        write(arguments.target, converted.whole(), meta)
    except (OSError, ValueError) as error:
        sys.exit(f"convert_checkpoint: {error}")
    report(converted, arguments.target)


if __name__ == "__main__":
    main()
