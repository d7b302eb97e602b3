"""Which checkpoints of a finished run stay."""

import shutil
from pathlib import Path

import pytest

from sa_mmdet.studies.checkpoints import KEPT, remove_checkpoints


@pytest.mark.parametrize("keep", KEPT)
def test_those_of_a_copied_run_are_its_own(keep: str, tmp_path: Path) -> None:
    original, copied = tmp_path / "original", tmp_path / "copied"
    original.mkdir()
    for name in ("epoch_1.pth", "epoch_2.pth"):
        (original / name).touch()
    (original / "last_checkpoint").write_text(str(original / "epoch_2.pth"))
    shutil.copytree(original, copied)
    remove_checkpoints(copied, keep)
    expected = dict(all=["epoch_1.pth", "epoch_2.pth"], tested=["epoch_2.pth"], none=[])[keep]
    assert sorted(path.name for path in copied.glob("*.pth")) == expected
    assert len(list(original.glob("*.pth"))) == 2
