"""A file or folder is complete or it is not there."""

from pathlib import Path

import pytest

from sa_mmdet.atomic_write import atomic_write, atomic_write_text, temporary_beside, unfinished_files


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
        assert temporary.suffix == ".txt"
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


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"none does not exist: make it first"),
        temporary_beside(tmp_path / "none" / "a.txt"),
    ):
        pass
