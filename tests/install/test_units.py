"""The build in few units."""

import shutil
import subprocess
from pathlib import Path

import pytest
from installer import units


def test_files_of_one_unit_may_define_the_same_names_and_macros(tmp_path: Path) -> None:
    """A compiler checks it: functions, types and constants of the same name in several files, and macros."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "shared.hpp").write_text("#pragma once\ninline int helper(int x) {\n  return x + 100;\n}\n")
    (folder / "a.cpp").write_text(
        "#include <cstdio>\n#define max(a, b) ((a) > (b) ? (a) : (b))\n"
        "int const LIMIT = 0;\nstruct Point {\n  int x;\n};\nint helper(int x) {\n  return x + LIMIT + max(1, 0);\n}\n"
        "int of_a() {\n  return helper(0) + sizeof(Point);\n}\n"
    )
    (folder / "b.cpp").write_text(
        "#include <algorithm>\nint const LIMIT = 1;\ntemplate <typename T>\nstruct Pair;\n"
        "template <>\nstruct Pair<int> {\n  int x;\n};\nstruct Point {\n  char x;\n};\n"
        "template <typename T>\nT helper(const T x) {\n  return std::max(x, 2);\n}\n"
        "int of_b() {\n  return helper<int>(0) + sizeof(Point);\n}\n"
    )
    for name, size in (("c", 1), ("d", 2)):
        (folder / f"{name}.hpp").write_text(f"#pragma once\n#define SIZE {size}\n")
        (folder / f"{name}.cpp").write_text(
            f'#include "shared.hpp"\n#include "{name}.hpp"\n#ifndef GIVEN\n#define GIVEN SIZE\n#endif\n'
            f"int of_{name}() {{\n  return helper(0) + 10 * GIVEN;\n}}\n"
        )
    (folder / "functor.hpp").write_text(
        "#pragma once\ntemplate <typename T>\nstruct Functor {\n  int operator()() const;\n};\n"
    )
    (folder / "e.cpp").write_text('#include "functor.hpp"\nint of_e() {\n  return Functor<int>()();\n}\n')
    (folder / "f.cpp").write_text(
        '#include "functor.hpp"\ntemplate <>\nstruct Functor<int> {\n'
        "  int operator()() const {\n    return 7;\n  }\n};\n"
    )
    (folder / "pybind.cpp").write_text(
        "#include <cstdio>\nint of_a();\nint of_b();\nint of_c();\nint of_d();\nint of_e();\n"
        'int main() {\n  std::printf("%d %d %d %d %d", of_a(), of_b(), of_c(), of_d(), of_e());\n}\n'
    )
    written = units.write(sorted(folder.glob("*.cpp")), [folder], tmp_path / "units", jobs=2)
    assert len(written) == 2
    subprocess.run(["c++", "-std=c++17", *map(str, written), "-o", str(tmp_path / "all")], check=True)
    assert subprocess.check_output([str(tmp_path / "all")], text=True) == "5 3 110 120 7"


def test_kernels_are_distributed_evenly_and_long_units_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "CUDA_UNITS", 2)
    sizes = {"big": 900, "middle": 500, "small": 300, "tiny": 100}
    for name, size in sizes.items():
        (tmp_path / f"{name}.cu").write_text("x" * size)
    for name in ("pybind", "one", "two"):
        (tmp_path / f"{name}.cpp").write_text("y" * 10)
    groups = units.plan(sorted(tmp_path.iterdir()), units.Sources([tmp_path]), jobs=2)
    names = [[path.stem for path in group] for group in groups]
    assert names == [["big"], ["middle", "small", "tiny"], ["pybind"], ["one", "two"]]
    monkeypatch.undo()
    assert len(units.plan(sorted(tmp_path.iterdir()), units.Sources([tmp_path]), jobs=1)) == units.CUDA_UNITS + 2
