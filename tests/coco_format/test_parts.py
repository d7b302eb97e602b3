"""Large result files are read in parts and checked many detections at once, and what is wrong is found all the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_coco import rectangle
from places import Tool
from pycocotools.mask import encode

from sa_mmdet.coco_format import load_annotations, load_results, read_results

TOOL = "analysis_tools/compare_results.py"
IMAGE = dict(id=1, width=40, height=30)
TRUTH = dict(
    images=[IMAGE],
    categories=[dict(id=1, name="cell")],
    annotations=[dict(id=1, image_id=1, category_id=1, bbox=[2, 3, 20, 10], area=200)],
)
BAD_MASK = "entry 0 has a mask that is not a compressed run-length code"


def many(**fields: Any) -> list[dict[str, Any]]:
    """More detections than are read at once."""
    scores = [round(1 / number, 6) for number in range(1, 20_001)]
    return [dict(image_id=1, category_id=1, bbox=[2.5, 3, 20, 10], score=score, **fields) for score in scores]


def written(folder: Path, text: str) -> tuple[Path, Path]:
    (folder / "truth.json").write_text(json.dumps(TRUTH))
    (folder / "found.json").write_text(text)
    return folder / "truth.json", folder / "found.json"


@pytest.mark.parametrize("layout", [dict(), dict(indent=1), dict(separators=(",", ":"))])
def test_detections_come_in_parts(layout: dict[str, Any], tmp_path: Path) -> None:
    found = many()
    truth, path = written(tmp_path, "\n " + json.dumps(found, **layout) + "\n")
    parts = list(read_results(path, load_annotations(truth)))
    assert len(parts) > 1
    assert [score for part in parts for score in part.scores.tolist()] == [entry["score"] for entry in found]
    assert [image for part in parts for image in part.images] == [1] * len(found)
    assert all(part.boxes is not None and (part.boxes == [2.5, 3, 20, 10]).all() for part in parts)


@pytest.mark.parametrize(
    "note",
    [
        '"}, {"',
        "}, {",
        pytest.param({"a": [{}, {}]}, marks=pytest.mark.long),
        pytest.param([{}, {}], marks=pytest.mark.long),
    ],
)
def test_places_that_look_like_the_end_of_a_detection(note: Any, tool: Tool, tmp_path: Path) -> None:
    said = []
    for found in (many(), many(note=note)):
        status, printed, _ = tool(TOOL, *written(tmp_path, json.dumps(found)))
        assert status == 0
        said.append(printed)
    assert said[0] == said[1]


def test_another_tools_form_at_the_end_of_a_large_file(tool: Tool, tmp_path: Path) -> None:
    said = []
    for last in (1, "1", 1.0):
        found = many()
        found[-1]["image_id"] = last
        status, printed, _ = tool(TOOL, *written(tmp_path, json.dumps(found)))
        assert status == 0
        said.append(printed)
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-1], "is not readable as JSON: Expecting ',' delimiter"),
        (lambda text: text + "]", "is not readable as JSON: Extra data"),
        (lambda text: text[:-1] + ', "}, {"]', "entry 20000 is not an object"),
        (lambda text: text[:-1] + ', {"image_id": 1}]', "entry 20000 lacks category_id, score"),
        (lambda text: text[:-2] + ', "score": NaN}]', "entry 19999 has an invalid score or box: nan"),
        (lambda text: text[:-2] + ', "bbox": [1, 2, 3]}]', "entry 19999 has an invalid score or box"),
        (lambda text: text[:-2] + ', "image_id": 99}]', "entry 19999 names the image 99"),
        (lambda text: text[:-1] + ", " + "[" * 100_000, "is not readable as JSON: it is nested too deep"),
        (lambda text: '{"a": ' + text + ', "b": ' + text + "}", "must hold a list of detections, but holds a dict"),
    ],
)
def test_what_is_wrong_at_the_end_of_a_large_file(change: Any, message: str, tool: Tool, tmp_path: Path) -> None:
    paths = written(tmp_path, change(json.dumps(many())))
    status, printed, errors = tool(TOOL, *paths)
    assert (status, printed) == (1, "")
    assert f"{paths[1]}: {message}" in errors
    assert len(errors.splitlines()) == 1


def pixels(code: str) -> int | None:
    """How many pixels a run-length code describes, or None if pycocotools could not read it safely."""
    counts: list[int] = []
    while code:
        length = next((number for number, character in enumerate(code, 1) if not (ord(character) - 48) & 32), 0)
        digits = [ord(character) - 48 for character in code[:length]]
        if not 0 < length < 8 or min(digits) < 0 or max(digits) > 63:
            return None
        value = sum((digit % 32) * 32**place for place, digit in enumerate(digits))
        value -= 32**length if digits[-1] & 16 else 0
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        if counts[-1] < 0:
            return None
        code = code[length:]
    return sum(counts)


def codes() -> list[str]:
    """Codes of random masks, as they are and with a character changed, left out or added."""
    generator = np.random.default_rng(0)
    found = ["", "0", "`Y1", rectangle(2, 3, 20, 10, IMAGE)["counts"]]
    for _ in range(150):
        mask = np.repeat(generator.random((30, 10)) < generator.random(), 4, 1).astype(np.uint8, order="F")
        code = encode(mask)["counts"].decode()
        place = int(generator.integers(len(code)))
        other = chr(int(generator.integers(40, 118)))
        found += [code, code[:place] + other + code[place + 1 :], code[:place] + code[place + 1 :]]
        found += [code[:place] + other + code[place:]]
    return found


def test_masks_are_taken_or_refused_by_their_codes(tmp_path: Path) -> None:
    truth, path = written(tmp_path, "[]")
    coco = load_annotations(truth)
    taken = 0
    for code in codes():
        entry = dict(image_id=1, category_id=1, score=0.5, segmentation=dict(size=[30, 40], counts=code))
        path.write_text(json.dumps([entry]))
        if pixels(code) == 30 * 40:
            assert load_results(path, coco) == [entry]
            taken += 1
        else:
            with pytest.raises(ValueError, match=BAD_MASK):
                load_results(path, coco)
    assert 150 <= taken < 300


RIGHT = rectangle(2, 3, 20, 10, IMAGE)


@pytest.mark.parametrize(
    "wrong",
    [dict(RIGHT, size=[40, 30]), dict(RIGHT, counts=RIGHT["counts"][:-1]), dict(RIGHT, counts=7), dict(size=[30, 40])],
)
def test_one_bad_mask_among_many(wrong: dict[str, Any], tmp_path: Path) -> None:
    found = many(segmentation=RIGHT)
    found[17_000]["segmentation"] = wrong
    truth, path = written(tmp_path, json.dumps(found))
    with pytest.raises(ValueError, match="entry 17000 has a mask that is not a compressed run-length code"):
        load_results(path, load_annotations(truth))


def test_counts_whose_sum_does_not_fit_into_64_bits(tmp_path: Path) -> None:
    """Modulo 2**64 the sum is the image's number of pixels."""
    most, times = 2**34 - 1, 46_340
    rest = 2**64 + 30 * 40 - most * times * (times + 1) // 2
    code = stored(rest % times) + stored(most) + stored(rest // times) + (stored(most) + stored(0)) * (times - 1)
    assert pixels(code) == 2**64 + 30 * 40
    mask = dict(size=[30, 40], counts=code)
    truth, path = written(tmp_path, json.dumps([dict(image_id=1, category_id=1, score=0.5, segmentation=mask)]))
    with pytest.raises(ValueError, match=BAD_MASK):
        load_results(path, load_annotations(truth))


def stored(value: int) -> str:
    """The characters of one count."""
    found = ""
    while True:
        digit, value = value % 32, value // 32
        is_last = value == 0 and digit < 16
        found += chr(48 + digit + (0 if is_last else 32))
        if is_last:
            return found
