"""Kept wheels of mmcv."""

from pathlib import Path
from typing import Any

import pytest
from installer import operators
from installer_stand_ins import FACTS


@pytest.mark.parametrize(
    "other",
    [
        dict(version="2.13.0+cu130"),
        dict(git="def"),
        dict(abi=False),
        dict(python="cpython-312-x86_64-linux-gnu"),
        dict(machine="aarch64"),
        dict(cuda="13.0", gpus=[[9, 0]]),
    ],
)
def test_a_kept_wheel_is_found_only_for_its_own_pytorch_python_and_gpus(tmp_path: Path, other: dict[str, Any]) -> None:
    wheel = operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS, plain=False)
    built = tmp_path / "built"
    built.mkdir()
    (built / "mmcv-2.1.0-cp311-cp311-linux_x86_64.whl").touch()
    wheel.folder.parent.mkdir()
    wheel.keep(built)
    same = operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS | {"headers": "/elsewhere"}, plain=False)
    assert same.find() == wheel.folder / "mmcv-2.1.0-cp311-cp311-linux_x86_64.whl"
    assert operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS | other, plain=False).find() is None
    assert operators.Wheel.for_facts(tmp_path, "mmcv==2.0.1", FACTS, plain=False).find() is None
    assert operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", FACTS, plain=True).find() is None


def test_each_list_of_gpus_has_its_own_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    gpus = [FACTS | dict(cuda="13.0", gpus=gpus) for gpus in ([[8, 0]], [[9, 0]], [[8, 0], [9, 0]])]
    folders = {operators.Wheel.for_facts(tmp_path, "mmcv==2.1.0", facts, plain=False).folder for facts in gpus}
    assert len(folders) == 3
