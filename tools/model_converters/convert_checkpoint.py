"""Convert released weights of a ResNet with or without attention for MMDetection's configs.

Reads the files of the authors of SA-Net, SE (both implementations), ECA, SGE, CBAM and BAM, and those of torchvision,
timm, MMPretrain and MMDetection, as .pth, .pth.tar and .safetensors. Loads only tensors, and runs no code of a file.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

from sa_mmdet import __version__
from sa_mmdet.atomic_write import check_folder
from sa_mmdet.attention import attention_types
from sa_mmdet.checkpoints import Converted, convert, digest, known_attention, write


def report(converted: Converted, target: str) -> None:
    """Print the old and new names (similar blocks on one line), the unused keys, and the backbone's config."""

    after_stages = "|".join(kind._abbr_ for kind in attention_types().values() if kind.after_stages)

    def pattern(key: str) -> str:
        key = re.sub(rf"\b({after_stages})\d\.", r"\1*.", key)
        return re.sub(r"layer\d\.\d+\.", "layer*.*.", re.sub(r"layer\d\.([^\d])", r"layer*.\1", key))

    pairs = Counter(
        (pattern(source), pattern(name if name.startswith("head.") else f"backbone.{name}"))
        for name, source in converted.sources.items()
    )
    width = max(len(source) for source, _ in pairs)
    for (source, name), count in pairs.items():
        print(f"{source:{width}} -> {name}{f'  ({count})' if count > 1 else ''}")
    if converted.added:
        print(f"added: {len(converted.added)} counters num_batches_tracked, which the file does not have")
    print(f"unused keys: {', '.join(converted.unused) or 'none'}")
    options = ", ".join(f"{key}={value!r}" for key, value in converted.backbone.items())
    # A list replaces whatever init_cfg the base config has; a dict cannot be merged into None.
    init_cfg = f"[dict(type='Pretrained', prefix='backbone.', checkpoint={target!r})]"
    print(f"model = dict(backbone=dict({options}, init_cfg={init_cfg}))")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the file to read")
    parser.add_argument("target", help="the file to write: .pth or .safetensors")
    parser.add_argument(
        "--attention",
        default="auto",
        choices=["auto", *known_attention()],
        help="refuse a file with another attention (default: %(default)s, which takes any)",
    )
    parser.add_argument(
        "--depth",
        default="auto",
        choices=["auto", "18", "34", "50", "101", "152"],
        help="refuse a file with another depth (default: %(default)s, which takes any)",
    )
    parser.add_argument(
        "--prefix",
        help="prefix of the backbone's keys, such as 'backbone.' in a detector's file (default: found in the keys)",
    )
    parser.add_argument(
        "--dtype", choices=["float32"], help="data type for half-precision weights (default: refuse them)"
    )
    arguments = parser.parse_args()
    try:
        check_folder(arguments.target)
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
