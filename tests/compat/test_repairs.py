"""Which repairs are applied when, and what `python -m sa_mmdet` says about them."""

import importlib.util
import pkgutil
import subprocess
import sys

import pytest
import torch
from mmengine.utils.dl_utils.misc import mmcv_full_available
from places import CONFIGS

from sa_mmdet import __version__
from sa_mmdet.compat import Repair, active, apply, new_python


def test_a_repair_is_applied_once_and_only_where_it_is_needed() -> None:
    calls: list[str] = []
    needed = Repair("needed", "why", "all", lambda: calls.append("needed"))
    other = Repair("other", "why", "none", lambda: calls.append("other"), lambda: False)
    before = active()
    apply([needed, other])
    apply([needed, other])
    assert calls == ["needed"]
    assert active() == [*before, needed]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_importing_changes_nothing_for_several_processes_until_a_launcher_starts() -> None:
    said = run("""
import os, socket
import torch
from mmengine.dist import init_dist
from mmengine.model import MMDistributedDataParallel

before = torch.nn.SyncBatchNorm.forward, MMDistributedDataParallel.__init__
import sa_mmdet
from sa_mmdet.compat import active

old = int(torch.__version__.split(".")[0]) < 2  # which needs SyncBatchNorm repaired in a single process
after = torch.nn.SyncBatchNorm.forward, MMDistributedDataParallel.__init__
assert after[1] is before[1] and (old or after[0] is before[0])
names = [repair.name for repair in active()]
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
init_dist("pytorch", "nccl")
print(torch.distributed.get_backend(), sorted({repair.name for repair in active()} - set(names)))
torch.distributed.destroy_process_group()
""")
    new = ["DistributedDataParallel on CPUs", *(["SyncBatchNorm on CPUs"] if torch.__version__ >= "2" else [])]
    assert said.splitlines()[-1] == f"gloo {new}"


def test_the_package_describes_its_environment() -> None:
    result = subprocess.run([sys.executable, "-m", "sa_mmdet"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"sa_mmdet {__version__}"
    assert any(line.strip().startswith(f"PyTorch: {torch.__version__}") for line in lines)
    assert any(line.strip().startswith("mmcv: ") for line in lines)
    section = lines[lines.index("Active repairs of other libraries") :]
    assert any(line.startswith("  checkpoints load, and are never run: MMEngine") for line in section)
    waiting = section[section.index("Repairs that become active in distributed training without a GPU") :]
    assert any(line.startswith("  DistributedDataParallel on CPUs") for line in waiting)


def test_loading_configs_does_not_warn_of_pkg_resources() -> None:
    config = CONFIGS / "faster_rcnn" / "faster-rcnn_sa-r50_fpn_1x_coco.py"
    code = f"import sa_mmdet; from mmengine.config import Config; Config.fromfile({str(config)!r})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "pkg_resources" not in result.stderr


def test_mmengine_finds_mmcvs_operators_where_python_has_no_find_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pkgutil, "find_loader", raising=False)  # as in Python 3.14
    assert new_python.find_loader_is_missing()
    with pytest.raises(AttributeError):
        mmcv_full_available()
    monkeypatch.setattr(pkgutil, "find_loader", None, raising=False)  # so that it is taken away again
    new_python.restore_find_loader()
    assert not new_python.find_loader_is_missing()
    assert mmcv_full_available() == (importlib.util.find_spec("mmcv._ext") is not None)
    assert pkgutil.find_loader("no_such_module") is None  # type: ignore[attr-defined,unused-ignore]
