"""What the tests of several documents share."""

import argparse
from collections.abc import Callable
from typing import Any

import pytest
from places import Tool


@pytest.fixture
def parsing_tool(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """The fixture ``tool``, whose tools end when they have taken their arguments."""

    def stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_stop(self: argparse.ArgumentParser, *given: Any) -> None:
            parse(self, *given)
            raise SystemExit(0)

        return parse_and_stop

    for way in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, way, stopping(getattr(argparse.ArgumentParser, way)))
    return tool
