"""What several tests of the evaluation need."""

from collections.abc import Iterator

import pytest

from sa_mmdet.evaluation.tasks import DETECTOR


@pytest.fixture(scope="module")
def as_val2017() -> Iterator[None]:
    """Made-up test sets of 20 images count as COCO's val2017, beside whose results the paper's stand."""
    with pytest.MonkeyPatch.context() as patch:
        for task in DETECTOR.tasks:
            patch.setitem(vars(task), "images", 20)
        yield
