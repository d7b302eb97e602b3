"""Names that are too long for a figure are shortened so that each can still be told from the others."""

import pytest

from sa_mmdet.evaluation.svg import cut

LONG = "SA (faster-rcnn_sa-r50_fpn_1x_coco_"


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        ([], []),
        (["none", "SA", "none"], ["none", "SA", "none"]),
        ([f"{LONG}alone)"], ["SA (faster-rcnn_sa-r50_fpn_1x..."]),
        ([f"{LONG}lr0.0005)", f"{LONG}lr0.005)"], ["SA (faste...lr0.0005)", "SA (faste...lr0.005)"]),
        ([f"{LONG}long", f"{LONG}long_er"], ["SA (faste...long", "SA (faste...long_er"]),
        (
            [f"{LONG}lr=0.1", f"{LONG}lr=0.2", "other", f"SE {LONG}"],
            ["SA (faste...0.1", "SA (faste...0.2", "other", "SE SA (faster-rcnn_sa-r50_fpn..."],
        ),
        ([f"{LONG}{'x' * 30}{end}" for end in "ab"], [f"{LONG}{'x' * 30}{end}" for end in "ab"]),
    ],
    ids=["no name", "short", "one", "numbers", "a part of another", "a group among others", "the difference is far"],
)
def test_names(names: list[str], shown: list[str]) -> None:
    found = cut(names)
    assert [found[name] for name in names] == shown
