"""A unity build: groups C++ sources into few units, each of which reads PyTorch's headers once.

mmcv's operators are some 80 C++ files (and some 50 for CUDA), and for each of them the compiler takes longer to read
PyTorch's headers than to compile the file itself. A unit is a file that includes many of them. Two conflicts between
files of one unit are resolved here: names that several files define are renamed for each file by the preprocessor, and
macros that a file defines are removed after it. PyTorch's two largest headers, with its layers, optimizers and its
compiler, are replaced by what operators need of them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

HEADERS = Path("headers")  # within the folder of the units: to be searched before PyTorch's own headers
# torch/extension.h also includes all of PyTorch's C++ layers and optimizers, which takes a third of a unit's time.
_TENSORS = """#pragma once
#include <torch/types.h>
#include <torch/csrc/utils/pybind.h>
"""
_REPLACED = ("torch/extension.h", "torch/script.h")
# The code that binds operators to Python runs once; compiling it with more optimization takes a fifth longer.
_BINDINGS = "pybind.cpp"
_LESS_OPTIMIZED = '#pragma GCC optimize("O1")'
CUDA_UNITS = 4  # at least: compiling all kernels in two units takes more than 3 GB of memory for each

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_MACRO = re.compile(r"^[ \t]*#\s*define\s+(\w+)((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# A definition that starts in the first column: its specifiers and type, its name, and its parameters up to the body.
_FUNCTION = re.compile(
    r"^(?!return|else|using|typedef|namespace|DISPATCH|REGISTER|AT_)[A-Za-z_][\w:<>,&* \t\n]*?[\s*&](\w+)"
    r"\(([^;{}()]|\([^()]*\))*\)\s*\{",
    re.MULTILINE,
)
# A specialisation is not a new name: the template may be defined in another file, or only declared.
_TYPE = re.compile(
    r"^(?:template\s*<[^{};]*?>\s*)?(?:struct|class|enum|union)\s+(\w+)\s*(?::[^;{]*)?\{"
    r"|^template\s*<[^{};]*?>\s*(?:struct|class)\s+(\w+)\s*;",
    re.MULTILINE,
)
_SPECIALISATION = re.compile(r"^(?:template\s*<[^{};]*?>\s*)?struct\s+\w+\s*<", re.MULTILINE)
_VARIABLE = re.compile(
    r"^(?:(?:static|inline|const|constexpr|unsigned|__device__|__constant__|int|float|double|long|bool|size_t|int64_t)\s+)+"
    r"(\w+)\s*(?:\[[^\]]*\]\s*)*=",
    re.MULTILINE,
)


def _text(path: Path) -> str:
    return _COMMENT.sub("", path.read_text(errors="replace"))


class Sources:
    """What the source files of one extension include and define.

    Args:
        include_dirs: The folders in which the compiler looks for headers.
    """

    def __init__(self, include_dirs: list[Path]) -> None:
        self._include_dirs = include_dirs
        self._texts: dict[Path, str] = {}
        self._defined: dict[Path, set[str]] = {}
        self._reached: dict[Path, set[Path]] = {}

    def text(self, path: Path) -> str:
        """A file's text without comments."""
        if path not in self._texts:
            self._texts[path] = _text(path)
        return self._texts[path]

    def defined(self, path: Path) -> set[str]:
        """The functions, types and variables that a file defines at its top level, starting in the first column."""
        if path not in self._defined:
            text = self.text(path)
            self._defined[path] = {
                match.group(1) or match.group(2)
                for pattern in (_FUNCTION, _TYPE, _VARIABLE)
                for match in pattern.finditer(text)
            }
        return self._defined[path]

    def macros(self, path: Path) -> dict[str, set[str]]:
        """The macros that a file defines, and the definitions of each, with spaces normalised."""
        found: dict[str, set[str]] = {}
        for name, body in _MACRO.findall(self.text(path)):
            found.setdefault(name, set()).add(" ".join(body.split()))
        return found

    def own_macros(self, paths: list[Path]) -> tuple[dict[Path, dict[str, set[str]]], dict[str, set[str]]]:
        """Collect macros.

        Args:
            paths: The files of a unit.

        Returns:
            For each file the macros of itself and of the headers that no other file includes; and the macros of the
            headers that several of the files include.
        """
        reached = {path: self.reached(path) for path in paths}
        counts = Counter(file for files in reached.values() for file in files)
        shared: dict[str, set[str]] = {}
        own: dict[Path, dict[str, set[str]]] = {path: {} for path in paths}
        for path, files in reached.items():
            for file in files:
                target = shared if counts[file] > 1 else own[path]
                for name, bodies in self.macros(file).items():
                    target.setdefault(name, set()).update(bodies)
        return own, shared

    def redefines(self, path: Path, paths: list[Path]) -> bool:
        """Whether a file defines a macro in another way than a header that it shares with other files."""
        own, shared = self.own_macros(paths)
        return any(name in shared and not bodies <= shared[name] for name, bodies in own[path].items())

    def reached(self, path: Path) -> set[Path]:
        """The file, and those of the extension's own files that it includes, directly or not."""
        if path not in self._reached:
            self._reached[path] = self._follow_includes(path)
        return self._reached[path]

    def _follow_includes(self, path: Path) -> set[Path]:
        found, waiting = {path}, [path]
        while waiting:
            current = waiting.pop()
            for name in _INCLUDE.findall(self.text(current)):
                for folder in (current.parent, *self._include_dirs):
                    candidate = (folder / name).resolve()
                    if candidate.is_file():
                        if candidate not in found:
                            found.add(candidate)
                            waiting.append(candidate)
                        break
        return found

    def clashing(self, paths: list[Path]) -> dict[str, set[Path]]:
        """The names that several files define, and those files; headers that the files include count too."""
        definers: dict[str, set[Path]] = {}
        for path in paths:
            for reached in self.reached(path):
                for name in self.defined(reached):
                    definers.setdefault(name, set()).add(reached)
        return {name: files for name, files in definers.items() if len(files) > 1}


def unit_text(paths: list[Path], sources: Sources) -> str:
    """Write the text of a unit that includes these files.

    Files that specialise templates come before those that may use them, as C++ requires. System headers come first, so
    that they are not affected by renaming. Each file's own macros are restored to their former state after it.

    Args:
        paths: The files.
        sources: The extension's sources.
    """
    paths = sorted(paths, key=lambda path: not _SPECIALISATION.search(sources.text(path)))
    clashing = sources.clashing(paths)
    own, shared = sources.own_macros(paths)
    lines = [_LESS_OPTIMIZED] if any(path.name == _BINDINGS for path in paths) else []
    for name in _system_headers(paths, sources):
        lines += [f"#if __has_include(<{name}>)", f"#include <{name}>", "#endif"]
    for path in paths:
        new_names = _new_names(sources.reached(path), clashing)
        macros = sorted(own[path].keys() - shared.keys())
        lines += [f'#pragma push_macro("{name}")' for name in macros]
        lines += [f"#define {name} {new}" for name, new in new_names.items()]
        lines.append(f'#include "{path}"')
        lines += [f"#undef {name}" for name in new_names]
        lines += [f'#pragma pop_macro("{name}")' for name in macros]
    return "\n".join([*lines, ""])


def _system_headers(paths: list[Path], sources: Sources) -> list[str]:
    files = {file for path in paths for file in sources.reached(path)}
    return sorted({name for file in files for name in re.findall(r"#\s*include\s+<([^>]+)>", sources.text(file))})


def _new_names(files: set[Path], clashing: dict[str, set[Path]]) -> dict[str, str]:
    """The names that exactly one of these files and a file of another source define, with their replacements."""
    new_names = {}
    for name, definers in sorted(clashing.items()):
        own = sorted(definers & files)
        if len(own) == 1:
            new_names[name] = f"{name}_of_{re.sub(r'[^0-9A-Za-z]', '_', own[0].name)}"
    return new_names


def plan(paths: list[Path], sources: Sources, jobs: int) -> list[list[Path]]:
    """Choose the files of each unit; the units that take longest come first.

    pybind.cpp, which binds all operators, takes as long as all other C++ files together and has its own unit. CUDA
    files, which are compiled once per kind of GPU and once for the CPU, are distributed evenly.

    Args:
        paths: The files.
        sources: The extension's sources.
        jobs: The number of units that are compiled at once.
    """
    alone = [[path] for path in paths if path.name == _BINDINGS]
    kinds = {suffix: [path for path in paths if path.suffix == suffix] for suffix in (".cpp", ".cu")}
    alone += [
        [path] for kind in kinds.values() for path in kind if [path] not in alone and sources.redefines(path, kind)
    ]
    rest = [path for path in paths if [path] not in alone]
    folders: dict[Path, list[Path]] = {}
    for path in rest:
        if path.suffix == ".cpp":
            folders.setdefault(path.parent, []).append(path)
    size = {path: sum(len(sources.text(file)) for file in sources.reached(path)) for path in paths}
    kernels = sorted((path for path in rest if path.suffix == ".cu"), key=lambda path: -size[path])
    shares: list[list[Path]] = [[] for _ in range(min(len(kernels), max(CUDA_UNITS, jobs)))]
    for path in kernels:
        min(shares, key=lambda share: sum(size[other] for other in share)).append(path)
    groups = sorted(folders.values(), key=lambda group: -sum(size[path] for path in group))
    others = [[path] for path in rest if path.suffix not in (".cpp", ".cu")]
    return [*shares, *alone, *groups, *others]


def write(paths: list[Path], include_dirs: list[Path], folder: Path, jobs: int) -> list[Path]:
    """Write the units of an extension, and the headers that replace PyTorch's.

    Args:
        paths: The extension's source files.
        include_dirs: The folders in which the compiler looks for headers.
        folder: The folder for the units.
        jobs: The number of units that are compiled at once.

    Returns:
        The units' paths.
    """
    sources = Sources([path.resolve() for path in include_dirs])
    for name in _REPLACED:
        header = folder / HEADERS / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(_TENSORS)
    written = []
    for number, group in enumerate(plan([path.resolve() for path in paths], sources, jobs)):
        path = folder / f"unit_{number}_{group[0].parent.name}{group[0].suffix}"
        path.write_text(unit_text(group, sources))
        written.append(path)
    return written
