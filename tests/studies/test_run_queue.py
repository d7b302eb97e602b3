"""Several runs at a time, in one command or in several, and what is told of them."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_up_coco import made_up
from places import REPOSITORY

from sa_mmdet.studies import launching

# In place of train.py and test.py: they record when they begin and end, and wait until a file lets them end.
TRAIN = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--work-dir") + 1])
events, gate = Path({events!r}), Path({gate!r})
def record(what):
    with events.open("a") as file:
        file.write(f"{{what}} {{folder.parent.name}}/{{folder.name}} {{os.environ.get('OMP_NUM_THREADS')}}\\n")
print("Epoch(train)  [1][20/26]  lr: 1.8e-05  eta: 0:02:35  time: 5.0708", flush=True)
record("begin")
while not gate.exists():
    time.sleep(0.05)
(folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
record("end")
"""
TEST = """
import json, sys
from pathlib import Path
[prefix] = [o.partition("=")[2] for o in sys.argv if o.startswith("test_evaluator.outfile_prefix=")]
found = dict(image_id=1, category_id=1, bbox=[0, 0, 9, 9], score=hash(prefix) % 97 / 100)
Path(prefix).parent.mkdir(exist_ok=True)
Path(prefix + ".bbox.json").write_text(json.dumps([found]))
"""


class Study:
    """Two small configs, and a driver whose trainings wait."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work = folder, folder / "work"
        self.gate, self.events = folder / "gate", folder / "events"
        self.events.touch()
        (folder / "annotations.json").write_text(json.dumps(made_up(40)))
        evaluator = (
            f"test_evaluator = dict(type='CocoMetric', ann_file={str(folder / 'annotations.json')!r})\n"
            "train_cfg = dict(max_epochs=2)\n"
        )
        tools = folder / "tools"
        tools.mkdir()
        (tools / "train.py").write_text(TRAIN.format(events=str(self.events), gate=str(self.gate)))
        (tools / "test.py").write_text(TEST)
        self.configs = [folder / "plain.py", folder / "sa.py"]
        for path in self.configs:
            path.write_text(evaluator)
        self.begun: list[subprocess.Popen[str]] = []

    def begin(self, *options: object) -> subprocess.Popen[str]:
        tool = REPOSITORY / "tools" / "analysis_tools" / "run_comparison.py"
        arguments = [*self.configs, "--seeds", 0, 1, "--work-dir", self.work, "--resamples", 50, *options]
        code = (
            "import runpy, sys; from pathlib import Path; from sa_mmdet.studies import launching, run_queue; "
            f"launching.DETECTOR_TOOLS = Path({str(self.folder / 'tools')!r}); run_queue._ASK_AGAIN = 0.1; "
            f"sys.argv = {['run_comparison.py', *map(str, arguments)]!r}; "
            f"runpy.run_path({str(tool)!r}, run_name='__main__')"
        )
        self.begun.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
            )
        )
        return self.begun[-1]

    def wait_for(self, events: int) -> None:
        deadline = time.monotonic() + 300  # of a busy machine
        while len(self.recorded()) < events:
            assert time.monotonic() < deadline, self.recorded()
            assert any(driver.poll() is None for driver in self.begun), [
                d.stdout.read() for d in self.begun if d.stdout
            ]
            time.sleep(0.05)

    def recorded(self) -> list[list[str]]:
        return [line.split() for line in self.events.read_text().splitlines()]


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    found = Study(tmp_path)
    yield found
    found.gate.touch()
    for driver in found.begun:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()


NAMES = ["plain/seed0", "sa/seed0", "plain/seed1", "sa/seed1"]


@pytest.mark.long
def test_two_commands_share_the_work_and_status_tells_of_it(study: Study) -> None:
    first = study.begin("--jobs", 2)
    study.wait_for(2)
    second = study.begin()
    study.wait_for(3)
    asked, _ = study.begin("--status").communicate()
    states = dict(line.split(maxsplit=1) for line in asked.splitlines())
    running = "running: epoch 1/2, step 20/26, 5.07 s per step, 3 min left"
    told = dict.fromkeys(NAMES[:3], running) | {NAMES[3]: "not begun"}
    assert {name: states.get(name) for name in NAMES} == told
    assert re.search(r"\n4 runs: 3 running, 1 not begun; expected end 20\d\d-\d\d-\d\d \d\d:\d\d, 3 at a time\n", asked)
    # A task of slurm does not keep its GPUs waiting for another one.
    task = study.begin("--run", 2)
    assert "sa/seed0: another process has it" in task.communicate()[0]
    assert task.returncode == 0
    study.gate.touch()
    printed = [driver.communicate()[0] for driver in (first, second)]
    assert [driver.returncode for driver in (first, second)] == [0, 0], printed
    begun = [event for event in study.recorded() if event[0] == "begin"]
    assert sorted(name for _, name, _ in begun) == sorted(NAMES)  # each once
    shares = {name: threads for _, name, threads in begun}
    assert shares["plain/seed0"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert "another process has it" in printed[1]
    assert all(re.search(rf"{name}: (finished|another|begins)", printed[0] + printed[1]) for name in NAMES)
    assert "Epoch(train)" not in printed[0] + printed[1]
    assert (study.work / "comparison.json").is_file()


def test_a_task_of_slurm_begins_its_run_while_others_look_at_its_state(study: Study) -> None:
    folder = study.work / "plain" / "seed0"
    folder.mkdir(parents=True)
    study.gate.touch()
    task = study.begin("--run", 1)
    while task.poll() is None:  # each look is short; a command that looks every second is not stopped by one
        with (folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            time.sleep(0.2)
        time.sleep(0.1)
        if study.recorded():
            break
    printed, _ = task.communicate()
    assert (folder / "results.bbox.json").is_file(), printed


def test_a_run_that_was_told_to_end_is_stopped_and_not_failed(study: Study) -> None:
    task = study.begin("--run", 1)
    study.wait_for(1)
    task.terminate()
    printed, _ = task.communicate()
    assert task.returncode == 143
    assert "plain/seed0: stopped" in printed
    assert "failed" not in printed
    folder = study.work / "plain" / "seed0"
    assert (folder / "train.log").is_file()
    assert not (folder / "failed.txt").exists()


@pytest.mark.long
def test_a_training_whose_driver_was_killed_is_not_begun_again(study: Study) -> None:
    first = study.begin()
    study.wait_for(1)
    os.kill(first.pid, signal.SIGKILL)  # the training goes on
    second = study.begin()
    study.wait_for(2)
    study.gate.touch()
    printed, _ = second.communicate()
    assert second.returncode == 0, printed
    begun = [name for what, name, _ in study.recorded() if what == "begin"]
    assert begun[:2] == NAMES[:2]
    # The orphan has no driver to test it: it was begun again after its end, which resumes at the last checkpoint.
    assert sorted(begun) == sorted([*NAMES, NAMES[0]])
    ends = [name for what, name, _ in study.recorded() if what == "end"]
    assert (
        study.recorded().index(["end", NAMES[0], "None"])
        < [number for number, event in enumerate(study.recorded()) if event[:2] == ["begin", NAMES[0]]][1]
    )
    assert len(ends) == 5


@pytest.mark.long
def test_print_what_a_study_itself_takes(study: Study) -> None:
    """The trainings end at once, so that what is left is the study's own time: -s shows it."""
    study.gate.touch()
    began = time.monotonic()
    task = study.begin("--run", 1)
    assert "plain/seed0: finished" in task.communicate()[0]
    print(f"\na task of slurm: {time.monotonic() - began:.1f} s")
    began, ended = time.monotonic(), []
    driver = study.begin("--seeds", *range(13))
    assert driver.stdout is not None
    for line in driver.stdout:
        if "finished in" in line:
            ended.append(time.monotonic() - began)
    assert len(ended) == 25  # one was finished before
    further = (ended[-1] - ended[0]) / 24
    print(f"on one machine: {ended[0]:.1f} s until the first run ends, {further:.2f} s per further one")


@pytest.mark.parametrize(
    ("worker", "processes", "visible", "expected"),
    [(0, 1, None, "0"), (3, 1, None, "3"), (1, 1, "4,6,7", "6"), (1, 2, None, "2,3"), (0, 2, "5,1,0,2", "5,1")],
)
def test_each_training_has_gpus_of_its_own(
    worker: int, processes: int, visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert launching.environment(worker, 2, processes, gpus=4)["CUDA_VISIBLE_DEVICES"] == expected


def test_one_training_at_a_time_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in launching.environment(0, 1, 2, gpus=2)
