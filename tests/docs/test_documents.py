"""The documents are true in what can be checked without running them."""

import re
import subprocess
from pathlib import Path

import pytest
from documents import DOCUMENTS, ELSEWHERE, NEEDS, blocks, needs
from mmengine.fileio import load
from places import REPOSITORY

from sa_mmdet import __version__

by_name = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The names by which GitHub links to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@by_name
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        document = file / "README.md" if file.is_dir() else file
        assert not anchor or anchor in anchors(document), target


@by_name
def test_files_that_are_named_exist(path: Path) -> None:
    tests = {file.name for file in (REPOSITORY / "tests").rglob("*.py")}
    for name in re.findall(r"`(?:tests/[\w/]*?)?((?:test|fuzz)_\w+\.py)`", prose(path)):
        assert name in tests, name
    for name in re.findall(r"`((?:tests|tools|configs|sa_mmdet)/[\w/.-]+)`", prose(path)):
        assert (REPOSITORY / name).exists(), name


@by_name
def test_commands_are_run_or_marked(path: Path) -> None:
    for block in blocks(path):
        assert block.language in ("bash", "python", "text"), f"a block of {path} does not say its language"
        for command in block.commands if block.language == "bash" else []:
            marked = needs(command)
            if marked is not None:
                rest = re.sub(NEEDS, "", marked.split(":")[0].split(";")[0])
                assert re.fullmatch(r"(, | and )*", rest), f"{command}: the mark may name {NEEDS.pattern}"


def test_the_tests_that_run_the_other_commands_exist() -> None:
    tests = [str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tests").rglob("test_*.py")]
    for start, word in ELSEWHERE.items():
        assert any(word in path for path in tests), start
    written = {c for path in DOCUMENTS for block in blocks(path) if block.language == "bash" for c in block.commands}
    assert {start for start in ELSEWHERE if not any(c.startswith(start) for c in written)} == set()


def test_the_makefile_has_the_targets_that_the_documents_name() -> None:
    targets = {
        match
        for path in DOCUMENTS
        for match in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), flags=re.MULTILINE)
    }
    assert {"demo", "test", "test-long", "lint", "check-gpu", "install"} <= targets
    for target in targets:
        result = subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 120


def test_images_are_small() -> None:
    for path in (REPOSITORY / "docs" / "images").iterdir():
        assert path.stat().st_size <= 200_000


def test_the_citation_is_of_this_version() -> None:
    citation = load(REPOSITORY / "CITATION.cff", file_format="yaml")
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_workflow_runs_make_test_on_every_python() -> None:
    workflow = load(REPOSITORY / ".github" / "workflows" / "test.yml")
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert "make test PYTHON=python" in [step.get("run") for step in job["steps"]]


def test_pre_commit_runs_the_checks_of_make_test() -> None:
    [repository] = load(REPOSITORY / ".pre-commit-config.yaml")["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make lint"]
    makefile = (REPOSITORY / "Makefile").read_text()
    assert re.search(r"^test: lint$", makefile, re.MULTILINE)
