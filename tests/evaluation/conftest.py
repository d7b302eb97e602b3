"""What several tests of the evaluation need."""

import html
from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from sa_mmdet.evaluation.tasks import DETECTOR


@pytest.fixture(scope="module")
def as_val2017() -> Iterator[None]:
    """Made-up test sets of 20 images count as COCO's val2017, beside whose results the paper's stand."""
    with pytest.MonkeyPatch.context() as patch:
        for task in DETECTOR.tasks:
            patch.setitem(vars(task), "images", 20)
        yield


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts no more than the words into figures, whose drawing takes half of a page's time; not with 'drawn'."""
    if "drawn" in request.fixturenames:
        return

    def save(figure: Figure, file: Any, **_: Any) -> None:
        words = [html.escape(text.get_text()) for text in figure.findobj(Text)]
        file.write(f"<svg>{''.join(f'<text>{word}</text>' for word in words)}</svg>")

    monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def drawn() -> None:
    """Keeps :func:`undrawn` from having an effect."""
