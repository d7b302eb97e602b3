"""Classifiers through the same comparison: formats, metrics, intervals, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up_predictions import (
    DATA,
    IMAGES,
    accuracy,
    as_csv,
    as_csv_of_scores,
    as_json,
    as_pickle,
    as_ranked_json,
    table,
)
from places import Tool

TOOL = "analysis_tools/compare_results.py"
WRITERS: list[Callable[[Path, np.ndarray], Path]] = [as_json, as_ranked_json, as_csv, as_csv_of_scores, as_pickle]


@pytest.mark.parametrize("write", WRITERS)
def test_accuracy_and_verdicts_from_each_format(
    write: Callable[[Path, np.ndarray], Path], tool: Tool, tmp_path: Path
) -> None:
    paths, expected = [], []
    for name, strength in (("none", 1.0), ("SA", 2.0)):
        scores = [DATA.scores(strength + 0.02 * seed, seed) for seed in range(3)]
        paths += [write(tmp_path / f"{name}{seed}", own) for seed, own in enumerate(scores)]
        expected.append({f"top{k}": np.mean([accuracy(own, k) for own in scores]) for k in (1, 5)})
    names = ["--names", "none", "none", "none", "SA", "SA", "SA"]
    outputs = ("--json", tmp_path / "out.json", "--png", tmp_path / "out.png")
    status, said, errors = tool(TOOL, *paths, *names, "--plan", 1, "--resamples", 200, *outputs)
    assert status == 0, errors
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["images"] == IMAGES
    for own, points in zip(expected, found["tasks"]["classification"]["points"], strict=True):
        assert points == pytest.approx(own)
    assert "SA - none: +" in said
    assert " top1, 95% interval over seeds and images +" in said
    assert f"{IMAGES} images, 3 against 3 runs: better" in said
    assert "SA - none: to show 1.0 top1 in 4 of 5 studies: " in said
    for row in found["tasks"]["classification"]["differences"][0].values():
        assert row["low"] < row["difference"] < row["high"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_formats_can_be_mixed_and_a_single_run_has_no_verdict(tool: Tool, tmp_path: Path) -> None:
    scores = DATA.scores(1.0, 0)
    paths = [as_pickle(tmp_path / "a", scores), as_csv(tmp_path / "b", scores), as_json(tmp_path / "c", scores)]
    status, said, errors = tool(TOOL, *paths, "--resamples", 20)
    assert status == 0, errors
    assert said.count("+0.0 top1, 95% interval over the images alone +0.0 to +0.0") == 2
    assert "better" not in said
    assert "a single run does not show what another seed would change" in said
    status, said, errors = tool(TOOL, paths[0])
    assert status == 0, errors
    assert f"{100 * accuracy(scores, 1):.1f}" in said


def test_the_interval_is_that_of_the_images(tool: Tool, tmp_path: Path) -> None:
    """With one run a side the variance is that of a paired difference of means, which has a formula."""
    scores = [DATA.scores(strength, seed) for seed, strength in enumerate((1.0, 1.5))]
    paths = [as_json(tmp_path / f"{i}", own) for i, own in enumerate(scores)]
    assert tool(TOOL, *paths, "--resamples", 4000, "--json", tmp_path / "out.json")[0] == 0
    row = json.loads((tmp_path / "out.json").read_text())["tasks"]["classification"]["differences"][0]["top1"]
    right = [own.argmax(1) == DATA.labels for own in scores]
    change = right[1].astype(float) - right[0]
    half = 1.96 * change.std() / IMAGES**0.5
    assert row["difference"] == pytest.approx(change.mean())
    assert row["high"] - row["difference"] == pytest.approx(half, rel=0.06)


def test_classes(tool: Tool, tmp_path: Path) -> None:
    """The accuracies are counted by a loop; a class with one image that one variant always hits has no verdict."""
    names, labels = zip(*((f"{kind}/{i}", kind) for kind in ("ant", "bee", "cat") for i in range(40)), strict=True)
    names, labels = (*names, "dog/0"), (*labels, "dog")
    paths, top1 = [], []
    for variant in range(2):
        for seed in range(4):
            generator = np.random.default_rng(10 * variant + seed)
            lines = []
            for name, label in zip(names, labels, strict=True):
                hit = generator.random() < (0.95 if label == "bee" and variant else 0.4)
                hit = bool(variant) if label == "dog" else hit
                lines.append([name, label, label if hit else "none"])
            paths.append(table(tmp_path / f"{variant}{seed}", ["image", "label", "top1"], lines))
            for kind in set(labels):
                own = [first == label for _, label, first in lines if label == kind]
                top1.append((variant, kind, sum(own) / len(own)))
    given = ["--names", *["first"] * 4, *["second"] * 4, "--resamples", 300, "--json", tmp_path / "out.json"]
    status, said, errors = tool(TOOL, *paths, *given)
    assert status == 0, errors
    found = json.loads((tmp_path / "out.json").read_text())["tasks"]["classification"]["classes"]
    assert found["images"] == dict(ant=40, bee=40, cat=40, dog=1)
    for variant, name in enumerate(("first", "second")):
        for kind, value in found["top1"][name].items():
            assert value == pytest.approx(np.mean([v for w, k, v in top1 if (w, k) == (variant, kind)]))
    cells = found["differences"]["second"]
    values = sorted(cells[kind]["p"] for kind in ("ant", "bee", "cat"))
    assert cells["bee"]["p"] == values[0] < 0.01
    assert cells["bee"]["adjusted"] == pytest.approx(3 * values[0])
    assert cells["dog"]["difference"] == 1
    assert cells["dog"]["p"] is cells["dog"]["adjusted"] is None
    assert "top1 by class, 4 of 4 classes" in said
    told = [line for line in said.splitlines() if ": second - first: " in line]
    assert len(told) == 1
    assert told[0].startswith("bee: second - first: +")
    assert told[0].endswith(": better")
    assert "1 of 4 classes have fewer than 30 images: no verdict" in said


def test_few_images_have_no_verdict(tool: Tool, tmp_path: Path) -> None:
    """All right against all wrong has no variance, which for a few images says nothing."""
    for images, verdict in ((29, "not told apart: a verdict needs 30 images or more"), (30, "better")):
        paths = []
        for name in ("wrong0", "wrong1", "right0", "right1"):
            first = "a" if name.startswith("right") else "b"
            lines = [[number, "a", first] for number in range(images)]
            paths.append(table(tmp_path / name, ["image", "label", "top1"], lines))
        given = ["--names", "wrong", "wrong", "right", "right", "--plan", 1, "--json", tmp_path / "out.json"]
        status, said, errors = tool(TOOL, *paths, *given)
        assert status == 0, errors
        assert f"{images} images, 2 against 2 runs: {verdict}\n" in said
        assert ("test on 30 images or more first" in said) == (images == 29)


def test_a_run_counts_once(tool: Tool, tmp_path: Path) -> None:
    scores = DATA.scores(1.0, 0)
    paths = [as_json(tmp_path / "a", scores), as_pickle(tmp_path / "b", scores)]
    status, _, errors = tool(TOOL, *paths, "--names", "one", "one")
    assert status == 1
    assert "b.pkl and " in errors
    assert "hold the same predictions, which would count as two runs: give each run once" in errors
    ranked = as_csv(tmp_path / "c", scores)
    status, _, errors = tool(TOOL, ranked, ranked, "--names", "one", "one")
    assert status == 1
    assert "hold the same predictions" in errors


def test_options_may_stand_between_the_files(tool: Tool, tmp_path: Path) -> None:
    paths = [as_csv(tmp_path / str(seed), DATA.scores(1.0, seed)) for seed in range(2)]
    status, said, errors = tool(TOOL, paths[0], "--resamples", 20, paths[1])
    assert status == 0, errors
    assert "1.csv - 0.csv: " in said


def test_labels_in_a_file_of_their_own(tool: Tool, tmp_path: Path) -> None:
    scores = [DATA.scores(strength, seed) for seed, strength in enumerate((1.0, 1.5))]
    with_labels = [as_json(tmp_path / f"with{i}", own) for i, own in enumerate(scores)]
    without = [as_json(tmp_path / f"without{i}", own, label=False) for i, own in enumerate(scores)]
    truth = table(tmp_path / "truth", ["image", "label"], list(zip(DATA.names, DATA.labels, strict=True)))
    found = []
    for arguments in (with_labels, (truth, *without)):
        status, _, errors = tool(
            TOOL, *arguments, "--names", "a", "b", "--resamples", 20, "--json", tmp_path / "o.json"
        )
        assert status == 0, errors
        found.append(json.loads((tmp_path / "o.json").read_text())["tasks"])
    assert found[0] == found[1]


def test_top5_needs_five_predictions_of_more_classes(tool: Tool, tmp_path: Path) -> None:
    few = [dict(image=str(i), label=i % 3, scores=[0.1, 0.2, 0.3]) for i in range(9)]
    (tmp_path / "few.json").write_text(json.dumps(few))
    status, said, errors = tool(TOOL, tmp_path / "few.json")
    assert status == 0, errors
    assert "top1" in said
    assert "top5" not in said
    # Of equal scores the first class comes first.
    equal = [dict(image=str(i), label=i, scores=[0.5] * 8) for i in range(8)]
    (tmp_path / "equal.json").write_text(json.dumps(equal))
    said = tool(TOOL, tmp_path / "equal.json")[1]
    assert said.splitlines()[2].split() == ["equal", "12.5", "62.5"]
