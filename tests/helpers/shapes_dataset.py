"""MMDetection's data set class over the made-up shapes."""

from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS


def shapes_dataset(root: Path, split: str = "val", **options: Any) -> Any:
    """Build the shapes below ``root`` as CocoDataset; ``options`` override its arguments."""
    cfg = dict(
        type="CocoDataset",
        data_root=str(root),
        ann_file=f"annotations/instances_{split}.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=("circle", "triangle", "square")),
        pipeline=[],
    )
    return DATASETS.build(cfg | options)
