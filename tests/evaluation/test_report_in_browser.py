"""The page in a real browser: sorting, enlarging, colours, narrow windows, print, and no request."""

import json
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, needed
from classifier_dirs import NONE, SA, SE, write_classifier
from made_up_coco import made_up
from places import REPOSITORY
from work_dirs import write_data, write_run

pytestmark = needed
PHONE, DESKTOP = 390, 1200  # pixels
PRINTED = 1032  # pixels of CSS: A4 in landscape without its margins
READABLE = 4.5  # the contrast that WCAG asks for


def report(folders: Sequence[Path], *options: object) -> Path:
    """The page about work directories, which lies beside the first one's parent."""
    page = folders[0].parents[1] / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, ["report.py", *folders, "--out", page, *options])))
        runpy.run_path(str(REPOSITORY / "tools" / "analysis_tools" / "report.py"), run_name="__main__")
    return page


@pytest.fixture(scope="module")
def page(as_val2017: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on three variants with boxes and masks, two runs of each, beside the paper."""
    root = tmp_path_factory.mktemp("browser")
    annotations = write_data(root, made_up(20))
    folders = []
    for name, noise in (("", 0.1), ("se-", 0.08), ("sa-", 0.02)):
        for seed in (0, 1):
            folder = root / f"mask-rcnn_{name}r50_fpn_1x_coco_with_a_long_name_of_its_own" / f"seed{seed}"
            config = f"mask_rcnn/mask-rcnn_{name}r50_fpn_1x_coco.py"
            folders.append(write_run(folder, annotations, config, seed, noise, ("bbox", "segm")))
    speed = dict(machine="a machine", threads=2, torch="2", depth=50, command=["backbone"])
    measured = {name: dict(inference=dict(ratio_paired=1.0, min_ms=9)) for name in ("plain", "fused", "folded")}
    runs = [dict(shape=[480, 640], batch=1, results=measured)]
    (root / "speed.json").write_text(json.dumps(dict(speed, runs=runs)))
    return report(folders, "--resamples", 20, "--images", 2, "--speed", root / "speed.json")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on twelve variants of two detectors, whose names a page must not take for its own tags."""
    root = tmp_path_factory.mktemp("crowded")
    annotations = write_data(root, made_up(12))
    configs = ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", "retinanet/retinanet_sa-r50_fpn_1x_coco.py")
    changes: dict[str, Any] = dict(optim_wrapper__optimizer__type="<script>window.bad = 1</script>")
    folders = [
        write_run(
            root / f"variant_{number}<b>&\"'" / "seed0",
            annotations,
            configs[number % 2],
            noise=0.02 * number,
            optim_wrapper__optimizer__lr=0.01 * (1 + number // 2),
            **(changes if number == 11 else {}),
        )
        for number in range(12)
    ]
    return report(folders, "--resamples", 2, "--images", 0)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on three classifiers, two runs of each."""
    root = tmp_path_factory.mktemp("classifiers")
    folders = [
        write_classifier(root / f"{name}_8xb32_in1k_with_a_long_name_of_its_own" / f"seed{seed}", own, seed, strength)
        for name, own, strength in (("r50", NONE, 1.0), ("se-r50", SE, 1.5), ("sa-r50", SA, 2.0))
        for seed in (0, 1)
    ]
    return report(folders, "--resamples", 20)


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture
def browser(running: Browser, page: Path) -> Browser:
    running.media()
    running.open(page, DESKTOP)
    return running


def cells(browser: Browser, table: int) -> list[list[str]]:
    """The texts of a table's rows, from above."""
    rows = f"[...document.querySelectorAll('table')[{table}].tBodies[0].rows]"
    return browser.run(f"{rows}.map(row => [...row.cells].map(cell => cell.textContent))")


def contrast(one: str, other: str) -> float:
    """The contrast of two colours such as rgb(1, 2, 3), by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_asks_for_nothing_and_logs_no_error(browser: Browser, page: Path, tmp_path: Path) -> None:
    assert browser.errors == []
    outside = [address for address in browser.requests if not address.startswith("data:")]
    assert outside == [page.as_uri()]
    # Nor could it: what a hostile run might bring in would be refused.
    asked = "fetch('http://127.0.0.1:9/').then(() => 'sent', error => error.message)"
    image = "new Promise(done => { const i = new Image(); i.onerror = () => done('refused'); i.src = '/x.png'; })"
    assert [browser.run(asked), browser.run(image)] == ["Failed to fetch", "refused"]
    assert len(browser.errors) >= 2
    assert all("Content Security Policy" in error for error in browser.errors)
    # This is how a request and an error would be seen.
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://127.0.0.1:9/x.png'><script>nothing.there()</script>")
    browser.open(bad)
    assert "http://127.0.0.1:9/x.png" in browser.requests
    assert browser.errors


def test_no_table_is_wider_than_a_window_of_1200_pixels(browser: Browser) -> None:
    beyond = "[...document.querySelectorAll('.wide')].map(box => box.scrollWidth - box.clientWidth)"
    found = browser.run(beyond)
    assert len(found) >= 8
    assert set(found) == {0}
    assert browser.run("document.documentElement.scrollWidth") <= DESKTOP


def test_a_phone_shows_it_without_moving_sideways_and_large_enough(browser: Browser) -> None:
    browser.size(PHONE, 844)
    assert browser.run("document.documentElement.scrollWidth") == PHONE
    heights = browser.run("[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) > 100
    assert min(heights) >= 7
    widths = browser.run("[...document.querySelectorAll('figure img')].map(one => one.getBoundingClientRect().width)")
    assert min(widths) > 0.9 * PHONE - 40
    # A wide table moves in its own box; what a row is of stays in sight.
    browser.run("document.querySelector('.wide').scrollLeft = 200")
    assert browser.run("document.querySelector('.wide td').getBoundingClientRect().left") < 20


@pytest.mark.parametrize("wish", ["light", "dark"])
def test_text_is_readable_on_white_and_on_black(browser: Browser, wish: str) -> None:
    browser.media(prefers_color_scheme=wish)
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) > 3 * 128) == (wish == "light")
    for selector, name in (("body", "color"), ("td", "color"), ("svg text", "fill")):
        colours = browser.run(f"[...document.querySelectorAll('{selector}')].map(e => getComputedStyle(e).{name})")
        assert colours
        assert all(contrast(back, colour) >= READABLE for colour in colours)


# For each figure the texts that cover one another, of what stands upright.
COVERED = """[...document.querySelectorAll('svg')].flatMap(figure => {
  const boxes = [...figure.querySelectorAll('text')].filter(one => one.textContent.trim()).map(
    one => [one.textContent.trim(), one.getBoundingClientRect()]).filter(([, box]) => box.width > box.height / 2);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4).map(([other]) => [one, other]));
})"""


def test_no_text_of_a_figure_covers_another(browser: Browser, crowded: Path) -> None:
    assert browser.run(COVERED) == []
    browser.open(crowded, DESKTOP)
    assert browser.run(COVERED) == []
    browser.run("document.body.innerHTML = '<svg><text y=20>one word</text><text y=22 x=9>another</text></svg>'")
    assert browser.run(COVERED) == [["one word", "another"]]  # this is how it would be seen


def test_twelve_variants_fit_and_their_names_are_only_text(browser: Browser, crowded: Path) -> None:
    browser.open(crowded, DESKTOP)
    assert browser.errors == []
    assert browser.run("[document.querySelectorAll('b').length, window.bad ?? 0]") == [0, 0]
    names = browser.run("[...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert len(set(names)) == 12
    assert "Faster R-CNN none (lr=0.01)" in names
    assert "RetinaNet SA (variant_11<b>&\"')" in names
    beyond = "[...document.querySelectorAll('.wide')].map(box => box.scrollWidth - box.clientWidth)"
    assert set(browser.run(beyond)) == {0}
    browser.size(PHONE, 844)
    assert browser.run("document.documentElement.scrollWidth") == PHONE


def test_classifiers_fit_a_window_and_a_phone(running: Browser, classifiers: Path) -> None:
    running.media()
    running.open(classifiers, DESKTOP)
    assert running.errors == []
    assert running.texts("h2") == ["Accuracy of the variants", "Accuracy by class", "Runs", "Provenance"]
    beyond = "[...document.querySelectorAll('.wide')].map(box => box.scrollWidth - box.clientWidth)"
    assert set(running.run(beyond)) == {0}
    assert running.run("document.documentElement.scrollWidth") <= DESKTOP
    running.size(PHONE, 844)
    assert running.run("document.documentElement.scrollWidth") == PHONE
    heights = running.run("[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height)")
    assert len(heights) > 50
    assert min(heights) >= 7


def test_a_click_sorts_by_a_column_up_and_down(browser: Browser) -> None:
    titles = browser.texts("h2, h3")
    assert titles.index("Box AP of the variants") < titles.index("Beside the paper")
    first = cells(browser, 0)
    assert [row[0] for row in first] == ["none", "SE", "SA"]  # the baseline, then as the folders were given
    for reverse in (False, True):
        browser.click("table:first-of-type th button", 1)
        values = [float(row[1].split()[0]) for row in cells(browser, 0)]
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) == 3
    assert browser.run("document.querySelectorAll('th')[1].getAttribute('aria-sort')") == "descending"
    browser.click("table:first-of-type th button", 0)
    assert [row[0] for row in cells(browser, 0)] == [
        "none",
        "SA",
        "SE",
    ]  # the alphabet's order
    # What is missing is last both ways.
    heads = browser.texts("thead")
    table = next(number for number, head in enumerate(heads) if head.startswith("class"))
    for _ in range(2):
        browser.run(f"document.querySelectorAll('table')[{table}].querySelectorAll('th button')[1].click()")
        assert cells(browser, table)[-1][1] == "missing"


def test_an_image_is_enlarged_by_mouse_and_keyboard(browser: Browser) -> None:
    dialog = "document.querySelector('dialog')"
    width = "querySelector('img').getBoundingClientRect().width"
    state = f"[{dialog}.open, {dialog}.{width}, {dialog}.textContent.trim()]"
    assert browser.run(state)[0] is False
    small = browser.run("document.querySelector('figure img').getBoundingClientRect().width")
    browser.click("figure img", 1)
    opened, large, caption = browser.run(state)
    assert opened
    assert large > 2 * small
    assert re.fullmatch(r"\d+\.jpg, none: \d+ right, \d+ wrong, \d+ missed", caption)
    browser.press("Escape")
    assert browser.run(state)[0] is False
    browser.run("document.querySelectorAll('figure img')[2].focus()")
    browser.press("Enter")
    assert browser.run(state)[0] is True
    browser.click("dialog img")
    assert browser.run(state)[0] is False


def test_it_prints_black_on_white_within_the_paper(browser: Browser) -> None:
    browser.media("print", prefers_color_scheme="dark")
    browser.size(PRINTED)
    assert browser.run("document.documentElement.scrollWidth") <= PRINTED
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = browser.run("[...document.querySelectorAll('table, svg, img')].map(e => e.getBoundingClientRect().right)")
    assert max(wide) <= PRINTED
    browser.media()
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)
    assert len(sizes) >= 3
    assert {(round(float(width)), round(float(height))) for width, height in sizes} == {(842, 595)}  # A4 in landscape


def test_ones_own_results_come_first(browser: Browser) -> None:
    titles = browser.texts("h2")
    order = ["Box AP of the variants", "Mask AP of the variants", "Beside the paper", "Box AP by class", "Runs"]
    assert all(titles.index(one) < titles.index(other) for one, other in pairwise(order))
    charts = browser.texts("figcaption")
    assert charts[:2] == ["measured here, beside the paper"] * 2
    assert charts[2] == "measured here; the time is that of inference of backbone, ResNet-50, 480 x 640, batch 1"
    verdicts = browser.texts("svg text")
    assert sum("not told apart" in text or text.endswith(("better", "worse")) for text in verdicts) == 2 * 6 * 2
