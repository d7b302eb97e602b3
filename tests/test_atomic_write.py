"""A file or folder is complete or it is not there."""

import os
from pathlib import Path

import pytest

from sa_mmdet.atomic_write import atomic_write, atomic_write_text, remove_unfinished, temporary_beside, unfinished_files


def write_half(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    (path / "inner").mkdir()  # which a file cannot have


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.name == "a.txt"
        assert unfinished_files(tmp_path, ".txt") == [temporary]
    assert target.read_text() == "new"
    atomic_write_text(target, "newer")
    assert target.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(NotADirectoryError), atomic_write(target) as temporary:
        write_half(temporary)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_made_in_one_step_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError), atomic_write(tmp_path / "data") as temporary:
        write_half(temporary / "inner" / "file")
    assert list(tmp_path.iterdir()) == []
    with atomic_write(tmp_path / "data") as temporary:
        (temporary / "inner").mkdir(parents=True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "inner").is_dir()


def test_permissions_stay_and_new_files_have_the_usual_ones(tmp_path: Path) -> None:
    target, new, usual = tmp_path / "a.txt", tmp_path / "new.txt", tmp_path / "usual.txt"
    target.write_text("old")
    usual.write_text("usual")
    target.chmod(0o600)
    atomic_write_text(target, "new")
    with atomic_write(new) as temporary:
        temporary.touch(0o600)
    assert target.stat().st_mode & 0o777 == 0o600
    assert new.stat().st_mode == usual.stat().st_mode


def test_temporary_files_are_where_nobody_can_put_a_link(tmp_path: Path) -> None:
    with temporary_beside(tmp_path / "a.txt") as one, temporary_beside(tmp_path / "a.txt") as other:
        assert one.parent != other.parent
        assert one.parent.stat().st_mode & 0o777 == 0o700
    (tmp_path / "victim").write_text("old")
    (tmp_path / "a.txt").symlink_to(tmp_path / "victim")
    atomic_write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "victim").read_text() == "old"


def test_only_what_no_process_is_writing_is_removed(tmp_path: Path) -> None:
    with temporary_beside(tmp_path / "a.pth") as writing:
        writing.touch()
        os.utime(writing.parent, (0, 0))
        remove_unfinished(tmp_path)
        assert writing.exists()
    left = tmp_path / ".unfinished-0123456789abcdef"
    left.mkdir()
    (left / "a.pth").touch()
    os.utime(left, (0, 0))
    (tmp_path / ".backup.2024.pth").touch()
    remove_unfinished(tmp_path)
    remove_unfinished(tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == [".backup.2024.pth"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"none does not exist: make it first"),
        temporary_beside(tmp_path / "none" / "a.txt"),
    ):
        pass
