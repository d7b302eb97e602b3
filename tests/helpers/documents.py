"""The repository's documents: their code blocks, and a reader who follows them step by step."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from places import MMDETECTION, REPOSITORY

DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "configs").glob("*/README.md")),
]
# What may follow "# needs" at the end of a command that no test runs.
NEEDS = re.compile(
    r"(COCO|ImageNet|CIFAR|Places-365|MMPretrain|an idle machine|many trained runs|the network|the CUDA toolkit"
    r"|torchvision|slurm|(a|\d+) GPUs?)"
)
# Commands that other tests run, since they make environments or set up machines: the beginning of each, and a word in
# the paths of these tests.
ELSEWHERE = {
    "make demo": "bare_systems",
    "make test": "bare_systems",
    "make install": "bare_systems",
    "make lint": "install",
    "make test-long": "documents",
    "apt-get install": "bare_systems",
    "dnf install": "install",
    "git clone": "bare_systems",
    "cd sa_mmdet": "bare_systems",
    "source .venv/bin/activate": "bare_systems",
    "pip install .": "install",
    "pip install --no-build-isolation --no-deps -e .": "packaging",
    "ln -s": "packaging",
}
# What makes a command short: a pattern that it contains, and the arguments to add.
SHORTER = {
    r"make_shapes(\.py)? ": "--train 16 --val 4",
    r"tools/train\.py|mim (train|gridsearch)": "--cfg-options train_cfg.max_epochs=1 train_cfg.val_interval=1",
    r"run_comparison\.py": "--seeds 0 --cfg-options train_cfg.max_epochs=1 train_cfg.val_interval=1",
    r"(run_comparison|compare_results|report)\.py": "--resamples 20",
    r"benchmark\.py": "--shape 64 64 --repeats 1 --no-memory",
    r"visualize_cam\.py": "--threshold 0 --steps 2",
    r"accuracy_by_group\.py": "--limit 2 --resamples 2",
}
# The documents speak of the last of many epochs.
_LINK_CHECKPOINTS = """
find work_dirs -name last_checkpoint | while read -r record; do
    for epoch in 10 12; do
        target="${record%/*}/epoch_$epoch.pth"
        [ -e "$target" ] || ln -s "$(realpath "$(cat "$record")")" "$target"
    done
done
"""


@dataclass(frozen=True)
class Block:
    """A code block of a document."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of a shell's block, one per line, each with the comment behind it."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("#")]


def blocks(path: Path) -> list[Block]:
    """The code blocks of a document, in order."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(match[1], match[2]) for match in found]


def needs(command: str) -> str | None:
    """What a command is marked to need."""
    found = re.search(r"\s# needs (.*)$", command)
    return found[1] if found else None


def elsewhere(command: str) -> str | None:
    """The other tests that run a command, if there are any."""
    starts = [start for start in ELSEWHERE if f"{command} ".startswith(f"{start} ")]
    return ELSEWHERE[max(starts, key=len)] if starts else None


def is_run(command: str) -> bool:
    """Whether a reader runs a command."""
    by_name = re.search(r"\bmim \w+ sa_mmdet\b", command)  # which the fork's openmim cannot do
    return needs(command) is None and elsewhere(command) is None and (MMDETECTION == "mmdet" or not by_name)


class Reader:
    """Follows documents in a folder with copies of the configs and tools, on small data.

    Args:
        folder: An empty folder.
        changes: Texts to replace in the documents, such as the path of the data.
        shorter: As SHORTER, for further arguments.
    """

    def __init__(self, folder: Path, changes: dict[str, str] | None = None, shorter: dict[str, str] | None = None):
        self.folder = folder
        self.shorter = [*SHORTER.items(), *(shorter or {}).items()]
        self.changes = {"mim train mmdet": f"mim train {MMDETECTION}", "mim test mmdet": f"mim test {MMDETECTION}"}
        self.changes |= changes or {}
        for name in ("configs", "tools"):
            shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("tests", "pyproject.toml"):
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / "work_dirs").mkdir()
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = dict(PYTHONPATH=path, PATH=programs, TORCH_HOME=str(folder / "torch"))
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_ROOT")}
        self.environment = kept | own

    def follow(self, path: Path, only: range | None = None) -> str:
        """Do what a document says: write its configs to my_config.py, run its commands and programs in order.

        Args:
            path: The document.
            only: The numbers of the blocks to follow; all if None.

        Returns:
            What was printed.
        """
        script = []
        for number, block in enumerate(blocks(path)):
            if only is not None and number not in only:
                continue
            if block.language == "bash":
                for command in filter(is_run, block.commands):
                    script += [f"echo {_quoted(f'>>> {command}')}", self._shortened(command), _LINK_CHECKPOINTS]
            elif block.language == "python" and "_base_ = " in block.text:
                script.append(f"cat > my_config.py <<'END'\n{block.text}END")
            elif block.language == "python" and "import sa_mmdet" in block.text:
                script.append(f"python - <<'END'\n{block.text}END")
        return self.run("\n".join(script))

    def _shortened(self, command: str) -> str:
        """A command with arguments that make it short, without its comment."""
        command = re.sub(r"\s+# .*$", "", command)
        return " ".join([command, *(more for pattern, more in self.shorter if re.search(pattern, command))])

    def run(self, script: str) -> str:
        """Run a script, each command of which must succeed; returns what it prints."""
        for old, new in self.changes.items():
            script = script.replace(old, new)
        result = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-5000:]
        return result.stdout


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
