"""The slurm that other tests use runs, requeues and cancels jobs as a real cluster does, and leaves nothing behind."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import Cluster

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(Cluster.missing()), reason=f"slurm is not here whole: no {', '.join(Cluster.missing())}"),
]
MEETING = """#!/bin/bash
touch here$SLURM_ARRAY_TASK_ID
until [ -e here0 ] && [ -e here1 ]; do sleep 0.2; done
echo $SLURMD_NODENAME ${SLURM_RESTART_COUNT:-first}
"""
# Like a training: it needs a while to save when it is stopped, and continues in its next start.
TRAINING = """
import os, signal, sys, time
def stop(*_):
    time.sleep(2)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print(os.environ.get("SLURM_RESTART_COUNT", "first"), flush=True)
if "SLURM_RESTART_COUNT" not in os.environ:
    time.sleep(3600)
print("done")
"""
# Its last process has left the job's session and lost its parent.
ENDLESS = """#!/bin/bash
(setsid sleep 3600 & echo $! >> processes)
echo $$ >> processes
echo $SLURMD_NODENAME ${SLURM_RESTART_COUNT:-first}
sleep 3600
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


def submit(cluster: Cluster, script: str, *options: str) -> str:
    path = cluster.folder / "job.sh"
    path.write_text(script)
    return cluster.submit("--requeue", "--open-mode=append", *options, str(path))


def alive(processes: list[str]) -> list[str]:
    """Those that still run; one that has ended, but that nobody has waited for, does not."""
    stats = [path for process in processes if (path := Path("/proc", process, "stat")).is_file()]
    return [path.parent.name for path in stats if path.read_text().rpartition(")")[2].split()[0] != "Z"]


def processes_of(folder: Path) -> list[str]:
    """All processes that have the folder in their command line or environment: daemons and jobs."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            texts = [(path / name).read_bytes() for name in ("cmdline", "environ")]
        except OSError:  # ended, or another user's
            continue
        if any(str(folder).encode() in text for text in texts):
            found.append(path.name)
    return alive(found)


def test_array_runs_on_both_nodes_at_once(cluster: Cluster) -> None:
    job = submit(cluster, MEETING, "--array=0-1", "--output=%a.txt")
    tasks = {f"{job}_0", f"{job}_1"}
    assert set(cluster.jobs()) == tasks
    cluster.wait_until(lambda: cluster.jobs() == dict.fromkeys(tasks, "COMPLETED"))
    lines = [(cluster.folder / f"{task}.txt").read_text() for task in (0, 1)]
    assert sorted(lines) == ["node1 first\n", "node2 first\n"]
    assert {cluster.node_of(task) for task in tasks} == {"node1", "node2"}


def test_urgent_job_preempts_and_the_preempted_one_has_time_to_save(cluster: Cluster) -> None:
    (cluster.folder / "training.py").write_text(TRAINING)
    output = cluster.folder / "training.txt"
    job = submit(cluster, f"#!/bin/bash\nexec {sys.executable} training.py\n", f"--output={output}")
    cluster.wait_until(lambda: output.is_file() and output.read_text() == "first\n")
    urgent = cluster.submit("--partition=urgent", "--nodes=2", "--wrap=sleep 1", "--output=urgent.txt")
    cluster.wait_until(lambda: cluster.jobs()[job] == "PENDING")
    cluster.wait_until(lambda: cluster.jobs() == {job: "COMPLETED", urgent: "COMPLETED"})
    text = output.read_text()
    assert "DUE TO PREEMPTION" in text
    assert [line for line in text.splitlines() if "slurm" not in line] == ["first", "saved", "1", "done"]


def test_job_of_a_lost_node_begins_again_on_the_other(cluster: Cluster) -> None:
    output, processes = cluster.folder / "endless.txt", cluster.folder / "processes"
    job = submit(cluster, ENDLESS, f"--output={output}")
    cluster.wait_until(lambda: output.is_file() and output.read_text())
    lost = cluster.node_of(job)
    [other] = {"node1", "node2"} - {lost}
    before = processes.read_text().split()
    assert alive(before) == before
    cluster.kill_node(lost)
    assert alive(before) == []
    cluster.wait_until(lambda: cluster.jobs()[job] == "RUNNING" and cluster.node_of(job) == other)
    cluster.wait_until(lambda: output.read_text() == f"{lost} first\n{other} 1\n")
    assert cluster.nodes()[lost].startswith("down")
    cluster.start_node(lost)
    assert cluster.nodes() == {lost: "idle", other: "allocated"}
    cluster.run("scancel", job)
    cluster.wait_until(lambda: cluster.jobs()[job] == "CANCELLED")
    [script] = set(processes.read_text().split()[1::2]) - set(before)
    cluster.wait_until(lambda: not alive([script]))


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    processes = tmp_path / "processes"

    def fail() -> None:
        with Cluster(tmp_path) as cluster:
            submit(cluster, ENDLESS)
            cluster.wait_until(lambda: processes.is_file() and len(processes.read_text().split()) == 2)
            assert set(processes.read_text().split()) < set(processes_of(tmp_path))
            raise KeyError("an error in a test")

    with pytest.raises(KeyError, match="an error in a test"):
        fail()
    assert processes_of(tmp_path) == []
    assert alive(processes.read_text().split()) == []


def test_cluster_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)  # a socket's path may have about a hundred letters
    with pytest.raises(RuntimeError, match=r"munged does not start: (.|\n)*maximum length"), Cluster(folder):
        pass
    assert processes_of(folder) == []
