"""A real slurm of one controller and two nodes on this machine, below one folder, without systemd or anything in /etc.

Run as a program, it is one of the cluster's machines: python slurm_cluster.py COMMAND ... runs the command until this
or its own standard input ends, which it does however the test ends, and then kills whatever the command has started.
"""

import ctypes
import getpass
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")
NODES = ("node1", "node2")
PATIENCE = 180.0  # seconds that anything may take on a slow and busy machine
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
# A requeued job begins again after the lifetime of credentials, by default 120 s.
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
# Without cgroups, which a container rarely lets anybody make: a process that lost its parent outlives its job.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=1
SlurmdTimeout=6
MessageTimeout=60
BatchStartTimeout=60
KillWait={kill_wait}
MinJobAge=60
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=work Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


class Cluster:
    """A slurm that runs as this user from the beginning of a ``with`` block to its end.

    Its partition ``work`` is the default one; jobs of ``urgent`` preempt those of ``work``, which slurm requeues. Each
    node has one CPU, so that two jobs run at once.

    Args:
        folder: Where everything is, also the logs; a new folder with a short path.
        grace: Seconds before a preempted job ends, to which slurm adds up to 30 since it looks so rarely; steps of
            ``srun`` receive SIGTERM at their beginning, the batch script at their end.
        kill_wait: Seconds between SIGTERM and SIGKILL when a job ends by preemption or ``scancel``.
        requeue: Seconds after which a requeued job may begin again, and within which a node must begin a job.
    """

    def __init__(self, folder: Path, grace: int = 2, kill_wait: int = 20, requeue: int = 15):
        self.folder = folder.resolve()
        self._times = dict(grace=grace, kill_wait=kill_wait, requeue=requeue)
        self._machines: dict[str, subprocess.Popen[bytes]] = {}

    @staticmethod
    def missing() -> list[str]:
        """The programs that are not there; the packages ``slurm-wlm`` and ``munge`` of Debian bring all."""
        return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def environment(self) -> dict[str, str]:
        """The variables with which slurm's programs find this cluster, without those of a job that this may be in."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        return ours | dict(SLURM_CONF=str(self.folder / "slurm.conf"), PATH=_path())

    def run(self, *command: str) -> str:
        """What a program such as ``sbatch`` prints."""
        options: dict[str, Any] = dict(capture_output=True, text=True, timeout=PATIENCE)
        done = subprocess.run(command, env=self.environment(), cwd=self.folder, **options)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def submit(self, *arguments: str) -> str:
        """Call ``sbatch`` with these arguments, and return the job's number."""
        return self.run("sbatch", "--parsable", *arguments).strip()

    def jobs(self) -> dict[str, str]:
        """The state of each job by what ``scancel`` calls it: '7', or '7_1' for a task of an array.

        Ended jobs are there for another minute.
        """
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def nodes(self) -> dict[str, str]:
        """The state of each node, such as 'idle', 'allocated' or 'down*'."""
        lines = self.run("sinfo", "--noheader", "--Node", "--partition=work", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def node_of(self, job: str) -> str:
        """The node on which a job runs or ran last; empty before."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%N").strip()

    def wait_until(self, predicate: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait until the predicate holds, by default as long as a slow and busy machine may need.

        Raises:
            TimeoutError: If it does not in time; it shows the jobs, the nodes and the end of the controller's log.
        """
        end = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > end:
                log = (self.folder / "slurmctld.log").read_text().splitlines()[-30:]
                raise TimeoutError("\n".join([f"{seconds} s passed: {self.jobs()}, {self.nodes()}", *log]))
            time.sleep(0.2)

    def kill_node(self, name: str) -> None:
        """Kill the node's daemon and all processes of its jobs at once, as if it lost its power.

        The controller sees this after 20 to 60 seconds, and then requeues its jobs.
        """
        self._machines.pop(name).communicate()

    def start_node(self, name: str) -> None:
        """Start a node, and let jobs run there once it is up."""
        self._run(name, "slurmd", "-D", "-N", name)
        self._wait_for(name, lambda: self._is_up(name))

    def stop(self) -> None:
        """Kill all processes of the cluster and its jobs; the folder stays."""
        while self._machines:
            self._machines.popitem()[1].communicate()

    def _start(self) -> None:
        for name in ("state", *NODES):
            (self.folder / name).mkdir(parents=True)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(1 + len(NODES))]
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        host = socket.gethostname().split(".")[0]
        values = dict(folder=self.folder, host=host, user=getpass.getuser(), ports=ports, nodes=NODES)
        (self.folder / "slurm.conf").write_text(_CONF.format(**values, **self._times))
        version = [int(number) for number in re.findall(r"\d+", self.run("slurmctld", "-V"))]
        # Older ones want a plugin even if nothing uses it; this one looks at nothing before it is used.
        plugin = "disabled" if version >= [23, 11] else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "pid", "seed", "log")]
        munge = self.folder / "munge.socket"
        # It warns about folders that others may write to, such as /tmp, and would not start without --force.
        self._run("munged", "munged", "--foreground", "--force", f"--socket={munge}", *files)
        self._wait_for("munged", munge.exists)
        self._run("slurmctld", "slurmctld", "-D")
        self._wait_for("slurmctld", lambda: self._answers("scontrol", "ping"))
        for name in NODES:
            self.start_node(name)

    def _run(self, name: str, *command: str) -> None:
        # The pipe's other end closes with this process, however it ends; Ctrl-C is for this process alone.
        program = [sys.executable, "-I", __file__, *command]
        with (self.folder / f"{name}.log").open("ab") as log:
            files: dict[str, Any] = dict(stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self.folder)
            self._machines[name] = subprocess.Popen(program, env=self.environment(), start_new_session=True, **files)

    def _wait_for(self, name: str, predicate: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not predicate():
            if self._machines[name].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} does not start: {(self.folder / f'{name}.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def _answers(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment(), capture_output=True).returncode == 0

    def _is_up(self, name: str) -> bool:
        if (state := self.nodes()[name]) in ("idle", "allocated", "mixed"):
            return True
        if state.startswith(("down", "drain")):  # refused while the node does not answer
            self._answers("scontrol", "update", f"nodename={name}", "state=resume")
        return False


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # where daemons are


def _descendants() -> list[int]:
    """The processes that come from this one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(path.parent.name)] = int(parent)
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def _reap(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _machine(command: list[str]) -> None:
    # Processes whose parents ended become children of this one (PR_SET_CHILD_SUBREAPER), so that none escapes.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    signal.signal(signal.SIGCHLD, _reap)
    main = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while main.poll() is None and not select.select([sys.stdin], [], [], 0.5)[0]:
        pass
    while running := _descendants():
        for process in running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


if __name__ == "__main__":
    _machine(sys.argv[1:])
