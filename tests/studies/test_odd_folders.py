"""Folders, disks and outputs that are not as a study would like them: one broken thing stops nothing else."""

import errno
import fcntl
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import Tool
from study_runs import Runs

from sa_mmdet.studies import launching

COST = dict(total=10**9, parameters=10**7, trainable=10**7)
TOOL = "analysis_tools/run_comparison.py"


@pytest.fixture
def configs(small: Callable[[str], list[Path]]) -> list[Path]:
    return small("metric")


@pytest.mark.parametrize("name", ["my study, [1st]", "étude 日本"])
def test_the_results_of_a_folder_with_any_name_are_found(
    name: str, runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    arguments = (TOOL, *configs, "--seeds", 0, "--resamples", 5)
    status, _, errors = tool(*arguments, "--work-dir", tmp_path / name / "a b")
    assert status == 1
    assert "call this in a folder from which the path of --work-dir needs no spaces, commas" in errors
    assert not runs.calls
    monkeypatch.chdir(tmp_path / name)
    for work in ("work", tmp_path / name / "absolute"):
        status, _, errors = tool(*arguments, "--work-dir", work)
        assert status == 0, errors
        assert (tmp_path / name / work / "comparison.json").is_file(), errors


def test_a_run_whose_folder_is_broken_does_not_stop_the_others(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    (work / "plain").mkdir(parents=True)
    (work / "plain" / "seed0").write_text("a file")
    (work / "sa-plain" / "seed0" / "failed.txt").mkdir(parents=True)
    status, said, errors = tool(TOOL, *configs, "--seeds", 0, 1, "--work-dir", work, "--resamples", 5)
    assert status == 1
    assert "2 of 4 runs failed:\n" in errors
    assert "plain/seed0: failed: " in said
    assert {call[1:] for call in runs.calls} == {("plain", "seed1"), ("sa-plain", "seed1")}


def test_notes_that_are_broken_are_not_believed(runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path) -> None:
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    folder = tmp_path / "work" / "plain" / "seed0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"seconds": "many"}')
    (folder / "failed.txt").write_bytes(b"\xff\xfe first\nsecond\n")
    (folder / "train.log").write_text("Epoch(train) [1][20/26] lr: 1.8e-05 \r no end of it")
    status, said, errors = tool(*arguments, "--status")
    assert status == 0, errors
    assert len(said.splitlines()) == 3
    assert "first second" in said
    (folder / "failed.txt").unlink()
    assert "plain/seed0     stopped\n" in tool(*arguments, "--status")[1]
    status, _, errors = tool(*arguments)
    assert status == 0, errors
    assert json.loads((folder / "run.json").read_text())["seconds"] < 1000


def test_lines_that_nobody_reads_end_no_study(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Gone())
    _, _, errors = tool(TOOL, *configs, "--seeds", 0, 1, "--work-dir", tmp_path / "work", "--resamples", 5)
    assert len(runs.calls) == 8, errors
    assert (tmp_path / "work" / "comparison.json").is_file(), errors


def test_a_disk_without_locks_is_named(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    assert "no locks" not in tool(*arguments)[1]
    monkeypatch.setattr(fcntl, "flock", none)
    status, said, errors = tool(*arguments)
    assert status == 0, errors
    assert "this disk has no locks, so that commands which share it do not see each other: call this once" in said


def test_the_state_of_a_study_that_may_only_be_read_is_told(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--resamples", 5)
    runs.fails_at = ("test", "plain", "seed0")
    assert tool(*arguments)[0] == 1
    opened = os.open

    def read_only(path: Any, flags: int, *others: Any, **named: Any) -> int:
        if flags & os.O_RDWR and Path(path).name == "lock":
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *others, **named)

    monkeypatch.setattr(os, "open", read_only)
    status, said, errors = tool(*arguments, "--status")
    assert status == 0, errors
    assert said.endswith("2 runs: 1 finished, 1 failed\n")


def test_what_a_stopped_run_has_written_needs_no_more_space(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in configs:
        path.write_text(
            f"{path.read_text()}model = dict(type='RetinaNet')\ntrain_cfg = dict(max_epochs=3)\n"
            "default_hooks = dict(checkpoint=dict(interval=1))\n"
        )
    arguments = (TOOL, *configs, "--seeds", 0, "--work-dir", tmp_path / "work", "--plan-only")
    monkeypatch.setattr("sa_mmdet.studies.plan.count", lambda *_: type("Cost", (), COST)())
    assert "disk: 0.7 GB needed" in tool(*arguments)[1]
    folder = tmp_path / "work" / "plain" / "seed0"
    folder.mkdir(parents=True)
    with (folder / "epoch_1.pth").open("wb") as file:
        file.truncate(200_000_000)  # sparse
    assert "disk: 0.5 GB needed" in tool(*arguments)[1]


def test_no_training_begins_after_sigterm(tmp_path: Path) -> None:
    written = tmp_path / "written"
    command = [sys.executable, "-c", f"open({str(written)!r}, 'w')"]
    with launching.passing_on_termination():
        with pytest.raises(launching.Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        # A worker between a training and its test does not see the signal.
        assert launching.run(command, tmp_path / "log", None, ()) == 128 + signal.SIGTERM
    assert not written.exists()
    with launching.passing_on_termination():
        assert launching.run(command, tmp_path / "log", None, ()) == 0


def test_slurm_gets_paths_and_options_as_they_are(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, home = tmp_path / "programs", tmp_path / "my 50% study's"
    programs.mkdir()
    home.mkdir()
    recorded = programs / "calls"
    (programs / "sbatch").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> {recorded}\necho 7\n')
    (programs / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(home)
    value = "a='b c';$SLURM_JOB_ID"
    options = ("--cfg-options", "x=[1,(2,3)]", value)
    arguments = (TOOL, *configs, "--seeds", 0, "--resamples", 5, "--work-dir", "mine", "--slurm=--partition='a b'")
    status, _, errors = tool(*arguments, *options)
    assert status == 0, errors
    calls = recorded.read_text().splitlines()
    logs = f"--output={home}/mine/slurm/".replace("%", "%%")
    assert f"{logs}train-%a.log" in calls
    assert f"{logs}judge.log" in calls
    assert calls.count("--partition=a b") == 2
    script = (home / "mine" / "slurm" / "train.sh").read_text()
    assert "#SBATCH --output" not in script
    line = script.splitlines()[-1].removeprefix("exec ")
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line}"],
        env={**os.environ, "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "99"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown[-2:] == ["--run", "2"]
    assert shown[shown.index("--cfg-options") + 1 :][:2] == ["x=[1,(2,3)]", value]
    assert shlex.split(line)[0] == sys.executable


def test_sizes_that_no_object_has_are_undefined_and_end_no_study(
    runs: Runs, configs: list[Path], tool: Tool, tmp_path: Path
) -> None:
    path = tmp_path / "annotations" / "instances_val.json"
    truth = json.loads(path.read_text())
    for entry in truth["annotations"]:
        entry["area"] = max(entry["area"], 2000)  # none is small
    path.write_text(json.dumps(truth))
    work = tmp_path / "work"
    status, said, errors = tool(TOOL, *configs, "--seeds", 0, 1, "--work-dir", work, "--resamples", 5)
    assert status == 0, errors
    assert "APS undefined" in said
    found = json.loads((work / "comparison.json").read_text())["tasks"]["bbox"]
    assert [one["APS"] for one in found["deviations"]] == [None, None]
    assert all(one["AP"] > 0 for one in found["deviations"])
