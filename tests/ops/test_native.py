"""The compiled operator for CPUs: where it is missing, on processors without wide vectors, under sanitizers."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from torch.utils.cpp_extension import include_paths, library_paths

from sa_mmdet.ops import backends, compiled, native

PACKAGE = REPOSITORY / "sa_mmdet"
# The tests that call the compiled operators.
OPERATORS = ("test_fused.py", "test_block_end.py", "test_baked.py", "test_max_pool.py", "test_pools.py")


def test_a_library_of_another_pytorch_is_not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as change:
        change.setattr(native, "library_name", lambda: "_torch_0_1_0")
        reason = importlib.reload(compiled).missing
        assert reason is not None
        assert reason.startswith("the C++ operator is ")
        assert reason.endswith("install the package again, where there is a C++ compiler")
        said = f"fused, by PyTorch's operators: {reason}" if backends.AVAILABLE else f"not fused: {backends.unusable}"
        assert backends.describe()["cpu"] == said
    importlib.reload(compiled)


@pytest.mark.skipif(compiled.missing is not None, reason=str(compiled.missing))
def test_a_library_from_older_sources_is_not_used() -> None:
    # One that lacks operators: here all of them.
    code = "import torch; torch.ops.load_library = print; from sa_mmdet.ops import compiled; print(compiled.missing)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("is compiled from older sources: install the package again")


def test_without_a_compiler_the_package_installs_without_the_operator(tmp_path: Path) -> None:
    for name in ("setup.py", "README.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "sa_mmdet", ignore=shutil.ignore_patterns("*.so", "__pycache__", ".mim"))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = os.environ | dict(CC="no-such-compiler", CXX="no-such-compiler")
    built = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [said] = [line for line in built.stderr.splitlines() if line.startswith("sa_mmdet:")]
    assert said.endswith("PyTorch's own operators do its work")
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "preload"),
    [
        (["-O3", "-DSA_MMDET_DEFAULT_CLONE"], ()),
        (["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"], ("libasan.so", "libubsan.so")),
    ],
    ids=["no wide vectors", "sanitizers"],
)
def test_other_builds_give_the_formulas_results(flags: list[str], preload: tuple[str, ...], tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "sa_mmdet", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    target = tmp_path / "sa_mmdet" / "ops" / "native" / f"{native.library_name()}.so"
    sources = [str(PACKAGE / "ops" / "native" / name) for name in native.SOURCES]
    paths = [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
    linked = ["-lc10", "-ltorch_cpu", "-o", str(target)]
    headers = [part.replace("-I", "-isystem", 1) for part in paths]
    # Sums in several lanes, as the package is built: one element after the other rounds more often. With sanitizers the
    # compiler makes no lanes, so that the bounds on roundings do not hold there.
    selected = "not fallback and not test_precision" if preload else "not fallback"
    general = ["-std=c++20", "-fPIC", "-shared", "-fno-trapping-math", "-fopenmp-simd"]
    subprocess.run(["g++", *general, *flags, *warnings, *headers, *sources, *linked], check=True)
    libraries = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in preload]
    # PyTorch and Python leave memory at their end; an error of the operator's own ends the process.
    environment = os.environ | dict(
        PYTHONPATH=str(tmp_path), LD_PRELOAD=" ".join(libraries), ASAN_OPTIONS="detect_leaks=0", OMP_NUM_THREADS="2"
    )
    tests = [str(REPOSITORY / "tests" / "ops" / name) for name in OPERATORS]
    command = [
        sys.executable,
        "-c",
        "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))",
        "-p",
        "no:cacheprovider",
    ]
    where = subprocess.run(
        [sys.executable, "-c", "import sa_mmdet.ops.compiled as c; print(c.__file__, c.missing)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(tmp_path)), where.stderr[-2000:]
    assert where.stdout.strip().endswith("None"), where.stdout
    ran = subprocess.run(
        [*command, *tests, "-k", selected], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
