"""The package is layered: imports run one way, and no file grows too long to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import REPOSITORY

PACKAGE = REPOSITORY / "sa_mmdet"
# From the bottom to the top: a module imports from its own folder and from those before it.
LAYERS = [
    "version",
    "messages",
    "atomic_write",
    "untrusted",
    "plotting",
    "registry",
    "upstream_tools",
    "compat",
    "ops",
    "attention",
    "checkpoints",
    "insertion",
    "backbones",
    "coco_format",
    "image_folders",
    "engine",
    "deployment",
    "analysis",
    "evaluation",
    "studies",
    "detector_insertion",
    "tool_options",
    "environment",
    "__init__",
    "__main__",
]
LONGEST = 300  # lines
LONGER = {"ops/_triton.py", "ops/_triton_block_end.py"}  # kernels


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if ".mim" not in path.relative_to(PACKAGE).parts)


def layer(module: tuple[str, ...]) -> str:
    """The folder or the single module below the package."""
    return module[0] if module else "__init__"


def module_of(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a file imports, wherever in the file: below the package, without its name."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [name.name.split(".") for name in node.names]
            yield from (tuple(name[1:]) for name in names if name[0] == "sa_mmdet")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
            elif (node.module or "").split(".")[0] == "sa_mmdet":
                base = ()
                node.module = (node.module or "").partition(".")[2]
            else:
                continue
            whole = (*base, *(node.module.split(".") if node.module else []))
            for name in node.names:
                inner = (*whole, name.name)
                found = PACKAGE.joinpath(*inner)
                yield inner if found.is_dir() or found.with_suffix(".py").is_file() else whole


def test_the_folders_are_those_of_the_layers() -> None:
    assert {layer(module_of(path)) for path in sources()} == set(LAYERS)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_layer_above_its_own(path: Path) -> None:
    own = LAYERS.index(layer(module_of(path)))
    above = [".".join(module) for module in imported(path) if LAYERS.index(layer(module)) > own and module]
    assert not above


def test_no_modules_import_each_other() -> None:
    """The layers keep the folders apart; this is about the modules of one folder."""
    graph = {module_of(path): set(imported(path)) - {module_of(path)} for path in sources()}
    # A package's own module imports its modules, which may not ask for it in return.
    done: set[tuple[str, ...]] = set()

    def visit(module: tuple[str, ...], stack: tuple[tuple[str, ...], ...]) -> None:
        assert module not in stack, " imports ".join(".".join(name) or "sa_mmdet" for name in (*stack, module))
        if module not in done:
            for inner in graph.get(module, set()) - {()}:
                visit(inner, (*stack, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_no_file_is_too_long() -> None:
    files = [*sources(), *PACKAGE.rglob("*.html")]
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST and name not in LONGER} == {}


def test_tests_use_public_names_and_helpers_alone() -> None:
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(name.name for name in node.names)]
                ours = names[0] == "sa_mmdet" or (REPOSITORY / "tests" / "helpers" / f"{names[0]}.py").is_file()
                assert not ours or not any(name.startswith("_") and not name.endswith("__") for name in names), (
                    f"{path}: {'.'.join(names)}"
                )
                assert not names[0].startswith("test_"), f"{path}: {names[0]}"
                assert names[0] != "conftest", f"{path}: {names[0]}"
