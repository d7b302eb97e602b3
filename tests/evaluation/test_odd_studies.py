"""Runs that do not belong together: the report says so in one sentence, and judges nothing that should not be."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from made_up_coco import made_up
from places import Tool
from work_dirs import rewrite, write_data, write_run

TOOL = "analysis_tools/report.py"
SA = "demo/faster-rcnn_sa-r18_fpn_bccd.py"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", made_up(20))


@pytest.fixture
def study(undrawn: None, annotations: Path, tmp_path: Path) -> list[Path]:
    """Two runs without attention and two with SA, which is better."""
    work = tmp_path / "work"
    return [
        *(write_run(work / "none" / f"seed{seed}", annotations, seed=seed) for seed in (0, 1)),
        *(write_run(work / "sa" / f"seed{seed}", annotations, SA, seed=seed, noise=0.02) for seed in (0, 1)),
    ]


class Page:
    """What the report says, without its tags."""

    def __init__(self, text: str):
        self.source = text
        parts = re.findall(r'<p class="(verdict|note)">(.*?)</p>', text)
        self.verdicts = [html.unescape(inner) for kind, inner in parts if kind == "verdict"]
        notes = [html.unescape(inner) for kind, inner in parts if inner.startswith("Note: ")]
        self.notes = [note for note in notes if not note.endswith("images have no detection")]  # made-up ones have

    def note(self, beginning: str) -> str:
        [found] = [note for note in self.notes if note.startswith(f"Note: {beginning}")]
        return found


def report(tool: Tool, folders: list[Path], *options: object) -> Page:
    page = folders[0].parents[1] / "report.html"
    arguments = (TOOL, *folders, "--out", page, "--resamples", 50, "--images", 0, *options)
    status, _, errors = tool(*arguments)
    assert status == 0, errors
    return Page(page.read_text())


def test_what_belongs_together_is_judged_with_one_note(drawn: None, study: list[Path], tool: Tool) -> None:
    page = report(tool, study)
    [verdict] = page.verdicts
    assert re.search(r"^SA - none: \+.* over seeds and images .* 2 against 2 runs: ", verdict)
    other = "the paper's results of 5000: they are not put side by side"
    assert page.notes == [f"Note: the box results are of 20 images, {other}"]
    assert "Beside the paper" not in page.source
    assert "<svg" in page.source.partition("Differences, all metrics")[2].partition("<h3>")[0]


def test_runs_of_different_test_sets_are_not_put_side_by_side(study: list[Path], tool: Tool, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", made_up(20, seed=3))
    odd = write_run(tmp_path / "work" / "odd" / "seed0", other, SA, seed=5)
    page = report(tool, [*study, odd])
    assert page.verdicts == []
    note = page.note("the runs are of different test sets (none/seed0 on ")
    assert f"odd/seed0 on {other}" in note
    assert "AP of the variants" not in page.source
    assert "odd/seed0" in page.source.partition("<h2>Runs")[2]  # its own metrics are there


def test_a_copy_of_the_annotations_is_the_same_test_set(study: list[Path], tool: Tool, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "data", copy)
    for path in copy.glob("annotations/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    for folder in study[2:]:
        rewrite(folder, str(tmp_path / "data"), str(copy))
    assert len(report(tool, study).verdicts) == 1


def test_a_seed_that_one_side_lacks_is_named(study: list[Path], tool: Tool) -> None:
    page = report(tool, study[:3])
    assert page.note("SA has no run with seed 1, which others have: train it, too")
    [verdict] = page.verdicts
    assert "1 against 2 runs: not told apart: a single run" in verdict
    (study[3] / "results.bbox.json").unlink()
    page = report(tool, study)
    assert page.note("not judged, since results.bbox.json is missing: sa/seed1 (run_comparison keeps them")
    assert "1 against 2 runs: not told apart: a single run" in page.verdicts[0]
    (study[0] / "results.bbox.json").unlink()
    (study[1] / "results.bbox.json").unlink()
    page = report(tool, study)
    assert page.note("none, with which the others are compared, has no box results that can be judged")
    assert page.verdicts == []


def test_results_of_other_images_do_not_count(study: list[Path], tool: Tool, tmp_path: Path) -> None:
    other = made_up(20, seed=3)
    for image in other["images"]:
        image["id"] += 100
    for entry in other["annotations"]:
        entry["image_id"] += 100
    odd = write_run(tmp_path / "odd", write_data(tmp_path / "other", other), SA, seed=1, noise=0.02)
    shutil.copy(odd / "results.bbox.json", study[3])
    page = report(tool, study)
    assert "sa/seed1 is not judged: " in page.note("sa/seed1")
    assert "which the annotations do not have: do these results belong to other images?" in page.note("sa/seed1")
    assert "1 against 2 runs: not told apart: a single run" in page.verdicts[0]


def test_a_moved_study_is_judged_where_the_data_set_is_now(study: list[Path], tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    page = report(tool, study, "--images", 2)
    assert page.verdicts == []
    note = page.note("the box results of none/seed0, none/seed1, sa/seed0, sa/seed1 cannot be judged without the ann")
    assert note.endswith("which are not here: name the data set's folder with --data-root")
    page = report(tool, study, "--images", 2, "--data-root", tmp_path / "elsewhere")
    assert len(page.verdicts) == 1
    assert len(page.notes) == 1  # on the number of images
    assert page.source.count("data:image/jpeg") == 6
    page = report(tool, study, "--images", 2, "--data-root", tmp_path / "work")  # another folder
    assert page.verdicts == []


def test_two_studies_in_one_folder_are_taken_apart(
    study: list[Path], annotations: Path, tool: Tool, tmp_path: Path
) -> None:
    work, other = tmp_path / "work" / "slow", []
    for seed in (2, 3):
        rate = 0.005
        other.append(write_run(work / f"seed{seed}", annotations, SA, seed, 0.3, optim_wrapper__optimizer__lr=rate))
    page = report(tool, [*study, *other])
    note = page.note("the runs of Faster R-CNN ResNet-18 SA are not of one variant")
    assert note.endswith(
        "they differ in optim_wrapper.optimizer.lr (0.0005, 0.005): they are taken for 2 variants, lr=0.0005, lr=0.005"
    )
    assert [verdict.partition(": ")[0] for verdict in page.verdicts] == [
        "SA (lr=0.0005) - none",
        "SA (lr=0.005) - none",
    ]
    assert page.note("none and SA (lr=0.005) differ in more than the backbone, in optim_wrapper.optimizer.lr (0.0005, ")
    plain = report(tool, [*study, *other], "--baseline", "SA (lr=0.005)")
    assert plain.verdicts[0].startswith("none - SA (lr=0.005): ")


def test_what_would_count_twice_does_not(study: list[Path], annotations: Path, tool: Tool, tmp_path: Path) -> None:
    work = tmp_path / "work"
    copy = work / "copy" / "seed2"
    shutil.copytree(study[2], copy)
    for log in copy.glob("*/*.log"):
        log.write_text(log.read_text().replace("seed: 0", "seed: 2"))
    again = write_run(work / "again" / "seed1", annotations, SA, seed=1, noise=0.05)
    page = report(tool, [*study, copy, again])
    said = "which is of the same variant"
    assert page.note("copy/seed2") == f"Note: copy/seed2 does not count: it has the same detections as sa/seed0, {said}"
    assert page.note("again/seed1") == f"Note: again/seed1 does not count: it has the same seed as sa/seed1, {said}"
    assert "2 against 2 runs" in page.verdicts[0]


def test_a_training_that_is_behind_does_not_count(study: list[Path], annotations: Path, tool: Tool) -> None:
    behind = write_run(study[3].with_name("seed2"), annotations, SA, seed=2, starts=((1,),))
    page = report(tool, [*study, behind])
    assert "sa/seed2 does not count: its last evaluation is of epoch 1, others of its variant have 2" in page.notes[0]
    assert "2 against 2 runs" in page.verdicts[0]


def test_settings_that_a_resumed_training_changed_are_named(study: list[Path], annotations: Path, tool: Tool) -> None:
    odd = write_run(study[3].with_name("seed2"), annotations, SA, seed=2, starts=((1,), (2,)))
    first = sorted(odd.glob("*/vis_data/config.py"))[0]
    first.write_text(first.read_text().replace("'lr': 0.0005", "'lr': 0.2"))
    page = report(tool, [*study, odd])
    assert page.note("sa/seed2: its settings were changed between its starts: optim_wrapper.optimizer.lr (0.2, 0.0005)")
    assert [verdict.partition(": ")[0] for verdict in page.verdicts] == [
        "SA (like sa/seed0) - none",
        "SA (like sa/seed2) - none",
    ]


def test_a_folder_that_is_given_twice_counts_once_and_equal_names_are_told_apart(
    study: list[Path], annotations: Path, tool: Tool, tmp_path: Path
) -> None:
    again = write_run(tmp_path / "later" / "sa" / "seed0", annotations, SA, seed=4, noise=0.05)
    page = report(tool, [*study, study[1].parent / ".." / "none" / "seed1", again])
    assert page.note(f"{study[1].parent}/../none/seed1 is given twice: it counts once")
    assert "3 against 2 runs" in page.verdicts[0]
    for folder in (study[2], again):
        assert f">{folder}</td>" in page.source


def test_annotations_that_cannot_be_read_are_named(study: list[Path], annotations: Path, tool: Tool) -> None:
    annotations.write_text("[]")
    page = report(tool, study)
    assert page.verdicts == []
    assert "is not a file of COCO annotations" in page.notes[0]


def test_a_single_run_is_shown_and_not_compared(study: list[Path], tool: Tool) -> None:
    page = report(tool, study[:1])
    assert page.verdicts == []
    assert page.note("none is the only variant with box results: nothing is compared")
    assert "Differences, all metrics" not in page.source
    assert page.source.count("Accuracy by cost") == 1


def test_without_a_plain_variant_the_first_is_named_as_the_baseline(
    study: list[Path], annotations: Path, tool: Tool, tmp_path: Path
) -> None:
    se = write_run(tmp_path / "work" / "se" / "seed0", annotations, SA.replace("_sa-", "_se-"), seed=0)
    page = report(tool, [se, *study[2:]])
    assert page.note("no variant is without attention: the others are compared with SE, the first; name another with -")
    assert page.verdicts[0].startswith("SA - SE: ")
    page = report(tool, [se, *study[2:]], "--baseline", "SA")
    assert page.verdicts[0].startswith("SE - SA: ")
    assert not any("no variant is without attention" in note for note in page.notes)


def test_lines_of_a_log_that_no_evaluation_writes_are_left_out(study: list[Path], tool: Tool) -> None:
    for log in study[3].glob("*/vis_data/scalars.json"):
        odd = ('{"coco/bbox_mAP": 1e300, "step": 3}', '{"coco/bbox_mAP": -9, "step": 3}', '{"loss": 1e308, "step": 30}')
        log.write_text(log.read_text() + "\n".join(odd))
    page = report(tool, study)
    assert page.note("sa/seed1: 3 broken lines of its log were skipped")
    assert len(page.verdicts) == 1


def test_variants_whose_names_begin_alike_can_be_told_apart_in_every_figure(
    annotations: Path, tool: Tool, tmp_path: Path
) -> None:
    """Names that are too long for a figure are shortened where they do not differ."""
    names = [f"faster-rcnn_branches-{kind}-r18_fpn_bccd" for kind in ("add", "channel", "ungrouped-add", "ungrouped")]
    folders = [write_run(tmp_path / "work" / name / "seed0", annotations, f"sa_walk/{name}.py") for name in names]
    figures = re.findall(r"<svg.*?</svg>", report(tool, folders).source, re.DOTALL)
    shown = [set(re.findall(r"<text[^>]*>(Branches [^<]*)</text>", figure)) for figure in figures]
    assert len(shown) >= 4
    # The differences are those of three variants to the first, which the axis' label names among other words.
    assert {len(names) for names in shown if names} == {3, 4}
    assert all(len(name) <= 32 for names in shown for name in names)
    assert any(name == "Branches ...ungrouped-r18_fpn..." for names in shown for name in names)
