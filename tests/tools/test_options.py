"""The options of the command-line tools."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
from places import REPOSITORY, Tool

TOOLS = REPOSITORY / "tools"
OURS = [path for path in sorted(TOOLS.rglob("*.py")) if path.name not in ("train.py", "test.py")]  # others' own


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_every_option_has_a_description_and_a_default(path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[Any] = []
    add = argparse._ActionsContainer.add_argument

    def noting(self: Any, *names: Any, **settings: Any) -> Any:
        options.append((names, settings))
        return add(self, *names, **settings)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", noting)
    status, printed, _ = tool(path.relative_to(TOOLS), "--help")
    assert status == 0
    assert printed.startswith("usage: ")
    for names, settings in options:
        described = settings.get("help", "")
        assert described, names
        if described is argparse.SUPPRESS:
            continue
        assert re.match(r"[\w-]+ \S*\w", described), f"{names}: {described!r} is not a description"
        if names[0].startswith("--") and not settings.get("required"):
            assert "(default: " in described, names


def test_former_names_of_options_are_hidden_and_work(tool: Tool) -> None:
    _, printed, _ = tool("analysis_tools/benchmark.py", "--help")
    assert "--variants" in printed
    assert "--arms" not in printed
    arguments = ("operator", "--shape", 32, 32, "--repeats", 1, "--device", "cpu", "--no-memory")
    for option in ("--variants", "--arms"):
        status, printed, _ = tool("analysis_tools/benchmark.py", *arguments, option, "published")
        assert status == 0
        modes, columns, *rows = printed.strip("\n").splitlines()[1:]
        assert [mode.strip() for mode in modes.split("|")] == ["", "inference", "backward", "training"]
        assert columns.split()[:5] == ["variant", "|", "fastest", "median", "quartiles"]
        assert [row.split()[0] for row in rows] == ["plain", "published"]


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("compare_results", "--resamples", "0", "argument --resamples: 0 must be at least 1"),
        ("run_comparison", "--level", "1", "argument --level: 1 must be between 0 and 1"),
        ("report", "--resamples", "many", "argument --resamples: invalid integer value: 'many'"),
        ("visualize_cam", "--top", "0", "argument --top: 0 must be at least 1"),
    ],
)
def test_values_outside_their_limits_are_refused_before_anything_is_done(
    name: str, option: str, value: str, message: str, tool: Tool
) -> None:
    status, _, errors = tool(f"analysis_tools/{name}.py", "first", "second", option, value)
    assert status == 2
    assert message in errors
