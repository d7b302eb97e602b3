"""The table of experiments: every command is one that its tool takes, with configs that are built by tests."""

import re
import shlex
from pathlib import Path

from config_files import RUNNABLE
from places import REPOSITORY, Tool

from sa_mmdet.studies.paper import TABLES, groups_of

PAGE = REPOSITORY / "docs" / "experiments.md"


def rows() -> list[list[str]]:
    """The cells of the tables' rows that name a command."""
    lines = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines if "`python tools/" in " ".join(cells)]


def commands() -> list[list[str]]:
    return [shlex.split(found) for cells in rows() for found in re.findall(r"`python (tools/[^`]+)`", cells[2])]


def configs() -> list[Path]:
    """The configs that the commands name, by their paths or by a table of a paper."""
    named = [word for words in commands() for word in words[1:] if word.startswith("configs/")]
    found = [path for pattern in named for path in sorted(REPOSITORY.glob(pattern))]
    tables = [table for words in commands() for table in words[1:] if table in TABLES]
    found += [Path(config) for table in tables for group in groups_of(table) for config in group.configs]
    return list(dict.fromkeys(path.resolve() for path in found))


def test_every_row_has_the_sources_figure_a_command_and_ours() -> None:
    assert len(rows()) > 10
    for cells in rows():
        assert len(cells) == 5, cells
        assert all(cells), cells
        assert re.search(r"\d|not run|not reproduced", cells[4]), cells


def test_every_table_of_the_papers_is_there() -> None:
    named = {word for words in commands() for word in words}
    assert set(TABLES) <= named


def test_the_tools_take_the_commands(parsing_tool: Tool) -> None:
    for name, *arguments in commands():
        status, _, errors = parsing_tool(Path(name).relative_to("tools"), *arguments)
        assert status == 0, errors


def test_the_commands_name_configs_that_other_tests_build() -> None:
    """tests/configs builds every config in the folders of configs/."""
    for words in commands():
        for word in words[1:]:
            if word.startswith("configs/"):
                assert list(REPOSITORY.glob(word)), word
    assert set(configs()) <= {path.resolve() for path in RUNNABLE}
    assert len(configs()) > 60
