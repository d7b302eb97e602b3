"""The command that installs the stand-ins for programs that import mmdet first."""

import re
import sys
from pathlib import Path

import pytest
from mmcv_without_operators import MMCV, needs_compiled, python

from sa_mmdet.compat.mmcv_operators import __main__ as command


@pytest.mark.long
def test_a_file_in_mmcvs_folder_serves_programs_that_import_mmdet_first(bare: Path) -> None:
    file, metadata = bare / "mmcv" / "_ext.py", bare / "mmcv_lite-2.1.0.dist-info"
    metadata.mkdir()
    record = "mmcv/__init__.py,,\nmmcv_lite-2.1.0.dist-info/RECORD,,\n"
    (metadata / "RECORD").write_text(record)

    for _ in range(2):
        command.install(bare / "mmcv")
        assert (metadata / "RECORD").read_text() == record + "mmcv/_ext.py,,\n"  # pip uninstall deletes it too
    result = python("import mmdet.apis, mmcv.ops, sa_mmdet, mmcv._ext; print(mmcv._ext.nms.__module__)", bare)
    assert result.stdout == "mmcv._ext.suppression\n", result.stderr

    command.remove(bare / "mmcv")
    assert not file.exists()
    assert (metadata / "RECORD").read_text() == record
    with pytest.raises(SystemExit, match=f"there is no {re.escape(str(file))}"):
        command.remove(bare / "mmcv")
    file.write_text("somebody's own")
    with pytest.raises(SystemExit, match="was not written by this command"):
        command.remove(bare / "mmcv")


@needs_compiled
def test_no_file_is_written_beside_compiled_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mmcv_operators", "install"])
    with pytest.raises(SystemExit, match=r"mmcv has compiled operators, .*: there is nothing to stand in for"):
        command.main()
    assert not (MMCV / "_ext.py").exists()
