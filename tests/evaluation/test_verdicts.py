"""Verdicts on made-up runs whose true difference is known, and through the command line."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_coco import detections, made_up
from places import Tool

from sa_mmdet.evaluation.calibration import Simulation, judge
from sa_mmdet.evaluation.verdicts import BETTER, OPEN, WORSE, Variance, holm, plan, power, row, variance, word

TOOL = "analysis_tools/compare_results.py"
IMAGES = 87


# Seeds that differ on all images, and runs that differ by their luck with these images alone; variants that differ on
# these images too, or not at all.
WORLDS = {"alike": (0.0040, 0.0026, 0.0), "tastes": (0.0040, 0.0026, 0.0020), "luck": (0.0020, 0.0040, 0.0030)}
# The method takes variants to scatter alike; these do not.
UNEVEN = (0.0040, 0.0026, 0.0020, 2.0)


@pytest.mark.parametrize("seeds", [3, 5])
def test_few_verdicts_are_false(seeds: int) -> None:
    found = Simulation(*WORLDS["tastes"]).rates(2, seeds, 600)
    assert 0.02 <= found.false <= 0.08  # three standard deviations of 600 studies around 5 %
    assert 0.92 <= found.held <= 0.98


@pytest.mark.long
@pytest.mark.parametrize("variants", [2, 6])
@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_calibration(world: str, seeds: int, variants: int) -> None:
    found = Simulation(*WORLDS[world]).rates(variants, seeds, 4000)
    print(f"\n| {world} | {seeds} | {variants} | {100 * found.false:.1f} | {100 * found.held:.1f} |")
    if seeds == 1:
        assert found.false == 0
    else:
        assert 0.035 <= found.false <= 0.065
        assert 0.93 <= found.held <= 0.97


@pytest.mark.long
@pytest.mark.parametrize("variants", [2, 6])
@pytest.mark.parametrize("seeds", [3, 5])
def test_variants_that_scatter_unevenly(seeds: int, variants: int) -> None:
    found = Simulation(*UNEVEN).rates(variants, seeds, 4000)
    print(f"\n| uneven | {seeds} | {variants} | {100 * found.false:.1f} | {100 * found.held:.1f} |")
    assert 0.02 <= found.false <= 0.12


def accuracies(generator: np.random.Generator, images: int, seeds: int) -> tuple[list[Any], list[Any]]:
    """Runs of two equal classifiers, each right about an image with the image's own probability, and resamples."""
    probability = generator.beta(0.3, 0.3, images)
    right = [(generator.random((seeds, images)) < probability).astype(float) for _ in range(2)]
    weights = generator.multinomial(images, np.full(images, 1 / images), 200) / images
    return [own.mean(1) for own in right], [own @ weights.T for own in right]


@pytest.mark.parametrize(
    ("images", "seeds", "studies"),
    [(45, 2, 300), *(pytest.param(n, s, 1000, marks=pytest.mark.long) for n in (30, 45, 120, 1000) for s in (2, 3))],
)
def test_few_verdicts_on_accuracies_are_false(images: int, seeds: int, studies: int) -> None:
    generator, false = np.random.default_rng(0), 0
    for _ in range(studies):
        runs, draws = accuracies(generator, images, seeds)
        found = row(runs, variance(runs, draws, images), 0.95)
        false += not found["low"] <= 0 <= found["high"]
    print(f"\n| {images} | {seeds} | {100 * false / studies:.1f} |")
    assert 0.015 <= false / studies <= 0.08


def test_runs_that_are_right_equally_often_by_chance_are_not_sure() -> None:
    right = np.zeros((4, 45))
    right[0, :34] = right[1, 5:39] = 1  # 34 of 45 in both, but not the same
    right[2, :35] = right[3, 5:40] = 1
    weights = np.random.default_rng(0).multinomial(45, np.full(45, 1 / 45), 200) / 45
    runs, draws = (list(np.split(own, 2)) for own in (right.mean(1), right @ weights.T))
    found = row(runs, variance(runs, draws, 45), 0.95)
    assert found["low"] < -0.05
    assert found["high"] > 0.05
    assert found["p"] > 0.5
    same = [np.repeat(own[:1], 2, 0) for own in draws]  # the runs of each variant are one run, copied
    assert variance(runs, same, 45).seed == 0


def test_true_differences_are_found_and_a_single_run_never_judges() -> None:
    world = Simulation(*WORLDS["tastes"])
    found = [word(world.study(2, 5, 0.02)[0], 0.95) for _ in range(50)]
    assert found.count(BETTER) >= 48
    assert WORSE not in found
    found = [word(world.study(2, 5, -0.02)[0], 0.95) for _ in range(50)]
    assert found.count(WORSE) >= 48
    assert {word(world.study(2, 1, 0.5)[0], 0.95) for _ in range(20)} == {OPEN}
    runs, draws = [np.array([0.1] * 3), np.array([0.5])], [np.full((3, 9), 0.1), np.full((1, 9), 0.5)]
    [one_sided] = judge(runs, draws, 9, 0.95)
    assert math.isnan(one_sided["p"])
    assert word(one_sided, 0.95) == OPEN


def test_the_parts_of_the_variance() -> None:
    """Beside their definitions, with loops in place of arrays; and large samples give the true parts."""
    generator = np.random.default_rng(1)
    runs = [generator.normal(0, 1, size) for size in (3, 4)]
    draws = [generator.normal(0, 1, (size, 6)) for size in (3, 4)]
    found = variance(runs, draws, 50)
    squares = sum((value - sum(own) / len(own)) ** 2 for own in runs for value in own)
    assert found.seed == pytest.approx(squares / 5)
    shared = 0.0
    for own in draws:
        centred = [[value - sum(line) / 6 for value in line] for line in own.tolist()]
        for b in range(6):
            mean = sum(line[b] for line in centred) / len(centred)
            shared += sum((line[b] - mean) ** 2 for line in centred) / 6 / 5
    assert found.seed_and_images == pytest.approx(shared)
    spread = [sum(draws[0][:, b]) / 3 - sum(draws[1][:, b]) / 4 for b in range(6)]
    images = sum((value - sum(spread) / 6) ** 2 for value in spread) / 5
    assert found.images == pytest.approx(max(0, images - shared * (1 / 3 + 1 / 4)))

    taste, luck = 0.3, 0.5
    many = 20000
    arms = [generator.normal(0, taste, many) + generator.normal(0, luck, (5, many)) for _ in range(2)]
    found = variance([arm[:, 0] for arm in arms], arms, 50)
    assert found.seed_and_images == pytest.approx(luck**2, rel=0.05)
    assert found.images == pytest.approx(2 * taste**2, rel=0.1)


def test_resamples_without_objects_do_not_count() -> None:
    """A class of a single image is missing in a third of all resamples, which have no AP then."""
    generator = np.random.default_rng(3)
    runs = [generator.normal(0.5, 0.01, 3) for _ in range(2)]
    draws = [generator.normal(0.5, 0.01, (3, 90)) for _ in range(2)]
    whole = variance(runs, draws, 50)
    with_gaps = [np.concatenate([own, np.full((3, 45), np.nan)], 1) for own in draws]
    assert variance(runs, with_gaps, 50) == whole
    assert plan(whole, 0.02, 0.05)[0] is not None
    undefined = variance(runs, [np.full((3, 9), np.nan)] * 2, 50)
    found = row(runs, undefined, 0.95)
    assert math.isnan(found["p"])
    assert math.isnan(found["low"])


def test_holm_beside_its_definition() -> None:
    values = [0.01, 0.04, 0.03, 0.5, math.nan]
    adjusted = holm(values)
    assert adjusted[:4] == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert math.isnan(adjusted[4])
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = list(generator.random(4) ** 3)
        rejected = {value for value, adjusted in zip(values, holm(values), strict=True) if adjusted < 0.05}
        steps = enumerate(sorted(values))  # the step-down procedure itself
        assert rejected == {
            value for _, value in itertools.takewhile(lambda step: step[1] < 0.05 / (4 - step[0]), steps)
        }


def test_plans_are_those_that_simulations_confirm() -> None:
    world = Simulation(*WORLDS["tastes"])
    true = Variance(world.seed**2 + world.luck**2, world.luck**2, 2 * world.taste**2, IMAGES, (3, 3))
    seeds, _ = plan(true, 0.01, 0.05)
    assert seeds is not None
    assert power(true, 0.01, seeds, 1, 0.05) >= 0.8 > power(true, 0.01, seeds - 1, 1, 0.05)
    shown = np.mean([word(world.study(2, seeds, 0.01)[0], 0.95) == BETTER for _ in range(400)])
    assert 0.72 <= shown <= 0.90
    _, times = plan(true, 0.014, 0.05)
    assert times is not None
    assert power(true, 0.014, 3, times, 0.05) >= 0.8 > power(true, 0.014, 3, times - 1, 0.05)
    assert plan(true, 0.0005, 0.05) == (None, None)  # these images alone, and three seeds alone, differ by more


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Three runs each of two variants on 40 images, the second of which places its boxes better."""
    truth = made_up(40)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    files: dict[str, list[Path]] = {}
    for name, noise in (("none", 0.10), ("SA", 0.03)):
        for seed in range(3):
            path = tmp_path / f"{name}{seed}.bbox.json"
            entries = detections(truth, noise + 0.001 * seed)
            path.write_text(json.dumps([{k: v for k, v in e.items() if k != "segmentation"} for e in entries]))
            files.setdefault(name, []).append(path)
    return tmp_path / "truth.json", files


def test_runs_of_one_name_are_one_variant(results: tuple[Path, dict[str, list[Path]]], tool: Tool) -> None:
    truth, files = results
    paths = [path for own in files.values() for path in own]
    names = [name for name, own in files.items() for _ in own]
    common = (truth, *paths, "--names", *names, "--resamples", 100, "--plan", 0.5)
    status, printed, _ = tool(TOOL, *common, "--json", truth.with_name("out.json"))
    assert status == 0
    [line] = [line for line in printed.splitlines() if re.match(r"SA - none: \S+ box AP,", line)]
    assert "interval over seeds and images" in line
    assert line.endswith("40 images, 3 against 3 runs: better")
    assert re.search(r"SA - none: to show 0\.5 box AP in 4 of 5 studies: .* images", printed)
    written: Any = json.loads(truth.with_name("out.json").read_text())
    found = written["tasks"]["bbox"]["differences"][0]["AP"]
    assert found["p"] == found["adjusted"] < 0.05
    # The word does not depend on the number of draws.
    again = tool(TOOL, truth, *paths, "--names", *names, "--resamples", 400)[1]
    assert "40 images, 3 against 3 runs: better" in again


def test_a_plan_needs_two_runs(results: tuple[Path, dict[str, list[Path]]], tool: Tool) -> None:
    truth, files = results
    arguments = (truth, files["none"][0], files["SA"][0], "--resamples", 20)
    status, printed, _ = tool(TOOL, *arguments, "--plan", 0.5)
    assert status == 0
    assert "train two or more runs of each first" in printed
    for value in ("0", "-1", "nan", "101", "much"):
        status, _, errors = tool(TOOL, *arguments, "--plan", value)
        assert status == 2
        assert "argument --plan" in errors


def test_trials_with_runs_of_one_config(tmp_path: Path, tool: Tool) -> None:
    """The deviation of the runs and the fraction of false verdicts are those of a plain computation."""
    truth = made_up(12)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    paths = []
    for seed in range(7):
        entries = detections(truth, 0.05, seed)
        paths.append(tmp_path / f"{seed}.bbox.json")
        paths[-1].write_text(json.dumps([{k: v for k, v in e.items() if k != "segmentation"} for e in entries]))
    command = ("misc/calibrate_verdicts.py", tmp_path / "truth.json", *paths, "--resamples", 50, "--studies", 40)
    status, printed, errors = tool(*command)
    assert status == 0, errors
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    found = {tuple(line[:3]): line[3:] for line in lines[2:]}
    assert found["trained runs", "1", "2"][0] == "0.0 +- 0.0"  # a single run is never judged
    assert ("trained runs", "5", "2") not in found  # there are 7 runs
    assert len(found) == 3 + 6
    [share] = re.findall(r"AP \d+\.\d+; standard deviation (\d+\.\d+), of which (\d+\.\d+)", printed)
    assert 0 < float(share[1]) <= float(share[0]) < 10
    status, _, errors = tool(*command[:5], "--studies", 40)
    assert status == 2
    assert "3 runs do not show how runs scatter" in errors
