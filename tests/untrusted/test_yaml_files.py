"""YAML of others is read as plain data, quickly, and whatever its depth."""

import io
from pathlib import Path

import mmdet
import pytest
import yaml

from sa_mmdet.untrusted import RefusedFileError
from sa_mmdet.untrusted.yaml_files import read_yaml

METAFILES = sorted(Path(mmdet.__path__[0]).glob(".mim/configs/*/metafile.yml"))


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML has no parser in C here")
@pytest.mark.skipif(not METAFILES, reason="MMDetection's metafiles are not installed")
def test_metafiles_are_read_by_the_parser_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [yaml.safe_load(path.read_text()) for path in METAFILES[::10]]

    def slow(text: str) -> None:
        pytest.fail("the parser in Python was called")

    monkeypatch.setattr(yaml.scanner.Scanner, "__init__", slow)
    assert [read_yaml(io.StringIO(path.read_text())) for path in METAFILES[::10]] == expected


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[\n" * 2_000 + "]\n" * 2_000,
        "{a: " * 100_000,
        "- " * 100_000,
        "? " * 100_000,
        "".join(" " * i + "a:\n" + " " * i + "-\n" for i in range(2_000)),
        "\r".join(" " * i + "- " for i in range(2_000)),
        "\x85".join(" " * i + "? " for i in range(2_000)),
        "--- " + "- " * 100_000,
    ],
    ids=["open lists", "lists", "mappings", "entries", "keys", "lines", "carriage returns", "next lines", "document"],
)
def test_no_depth_exhausts_the_stack(text: str) -> None:
    with pytest.raises(RefusedFileError, match="a YAML file"):
        read_yaml(io.StringIO(text))
