"""Put attention into a trained detector of MMDetection, which predicts after it what it did before.

Writes a config that inherits from the detector's, and a checkpoint. Places are dotted names of the detector's modules
with wildcards, such as 'backbone.layer*' or 'neck.fpn_convs.*'; --list prints them.
"""

import argparse
import sys

from mmdet.utils import register_all_modules
from mmengine.config import DictAction

from sa_mmdet.detector_insertion import Result, insert_into_detector, places_of
from sa_mmdet.insertion import Listed, with_fitting_options


def table(places: list[Listed]) -> str:
    """The places of a detector, as text."""
    rows = [("place", "modules", "type", "channels", "stride")]
    rows += [(p.pattern, str(p.count), p.kind, str(p.channels), str(p.stride or "?")) for p in places]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def report(result: Result) -> str:
    """What was written, what it costs, and what to do next."""
    lines = [f"{name}: {kind}, {size} parameters" for name, kind, size in result.places]
    total, attention = result.parameters
    lines.append(f"parameters: {total}, {attention} of them in attention")
    if isinstance(result.multiply_adds, str):
        lines.append(f"multiply-adds: not counted: {result.multiply_adds}")
    else:
        total, attention = result.multiply_adds
        lines.append(
            f"multiply-adds of an image of 256 x 256: {total / 1e9:.3f} G, {attention / 1e6:.3f} M in attention"
        )
    if result.difference is None:
        lines.append("predictions: not those of the detector as it was, until it is trained")
    else:
        lines.append(
            f"predictions: equal; largest difference of a feature map or of {result.detections} detections, relative "
            f"to the largest value: {result.difference:.1e} in {str(result.dtype).removeprefix('torch.')}"
        )
    lines += [f"{result.config} and {result.checkpoint}", "fine-tune:", f"python tools/train.py {result.config}"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "config", help="the detector's config, a file or such as mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py"
    )
    parser.add_argument("checkpoint", nargs="?", help="its weights")
    parser.add_argument("out_dir", nargs="?", help="the folder for the config and the checkpoint with attention")
    parser.add_argument(
        "--list", action="store_true", help="print the places of the config (default: insert attention at places)"
    )
    parser.add_argument(
        "--attention", default="ShuffleAttention", help="the type of the attention layer (default: %(default)s)"
    )
    parser.add_argument(
        "--options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="options of the layer, such as groups=32 (default: the largest groups or ratio that fit)",
    )
    parser.add_argument(
        "--at", nargs="+", default=[], metavar="PLACE", help="places behind which attention goes (default: none)"
    )
    parser.add_argument(
        "--replace",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="places where it goes instead of the module, such as another attention (default: none)",
    )
    parser.add_argument(
        "--paper-start",
        action="store_true",
        help="start as the attention's paper does, which changes the predictions (default: as the identity)",
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="IMAGE", help="images to compare predictions on (default: noise)"
    )
    arguments = parser.parse_args()
    register_all_modules(init_default_scope=False)
    try:
        if arguments.list:
            print(table(places_of(arguments.config)))
            return
        if arguments.checkpoint is None or arguments.out_dir is None or not (arguments.at or arguments.replace):
            parser.error("give CHECKPOINT, OUT_DIR, and places by --at or --replace; --list prints places")
        layer = with_fitting_options(dict(type=arguments.attention, **arguments.options))
        print(
            report(
                insert_into_detector(
                    arguments.config,
                    arguments.checkpoint,
                    arguments.out_dir,
                    dict.fromkeys(arguments.at, layer),
                    dict.fromkeys(arguments.replace, layer),
                    not arguments.paper_start,
                    arguments.images,
                )
            )
        )
    except (OSError, ValueError) as error:
        sys.exit(f"insert_attention: {error}")


if __name__ == "__main__":
    main()
