"""CUDA compilers."""

import os
from pathlib import Path

import pytest
from installer import cuda, settings
from installer_stand_ins import FACTS, executable


def nvcc(home: Path, version: str, headers: tuple[str, ...] = ("cuda_runtime.h", "cusparse.h")) -> Path:
    executable(home / "bin" / "nvcc", f"echo 'Cuda compilation tools, release {version}, V{version}.88'")
    for header in headers:
        (home / "include").mkdir(exist_ok=True)
        (home / "include" / header).touch()
    return home


def test_the_toolkit_has_pytorchs_cuda_version(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = FACTS | dict(cuda="97.1", gpus=[[8, 6], [9, 0]])
    old, new = nvcc(tmp_path / "cuda old", "96.4"), nvcc(tmp_path / "cuda new", "97.0")
    monkeypatch.setenv("CUDA_HOME", str(old))
    monkeypatch.setenv("PATH", f"{new / 'bin'}:{os.environ['PATH']}")
    found, others = cuda.search(facts)
    assert found is not None
    assert (found.home, found.version) == (new, "97.0")
    assert f"96.4 in {old}" in others
    variables = cuda.variables(facts, found)
    assert variables["CUDA_HOME"] == str(new)
    assert variables["TORCH_CUDA_ARCH_LIST"] == "8.6;9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert cuda.variables(facts, found)["TORCH_CUDA_ARCH_LIST"] == "7.5"


def test_headers_that_a_toolkit_lacks_are_pytorchs(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = FACTS | dict(cuda="97.1", gpus=[[9, 0]], headers=str(tmp_path / "site" / "torch" / "include"))
    script, compiler = nvcc(tmp_path / "script", "97.1", ()), nvcc(tmp_path / "compiler", "97.1", ("cuda_runtime.h",))
    monkeypatch.setattr(cuda, "candidates", lambda facts: [script, compiler])
    found, others = cuda.search(facts)
    assert found is None
    assert others == [f"97.1 in {script}", f"97.1 in {compiler}"]
    headers = tmp_path / "site" / "nvidia" / "cu97" / "include"
    headers.mkdir(parents=True)
    (headers / "cusparse.h").touch()
    assert cuda.search(facts)[0] == cuda.Toolkit(compiler, "97.1", (headers,))


def test_without_a_toolkit_nvidias_packages_are_installed_once(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "candidates", lambda facts: [])
    requested: list[str] = []

    def pip(*arguments: str) -> None:
        requested.append(arguments[-1])
        home = nvcc(Path(arguments[arguments.index("--target") + 1], "nvidia", "cu97"), "97.2")
        (home / "lib").mkdir()
        (home / "lib" / "libcudart.so.97").touch()

    facts = FACTS | dict(cuda="97.2", gpus=[[9, 0]], headers=str(tmp_path / "site" / "torch" / "include"))
    (tmp_path / "site" / "nvidia" / "cu97" / "include").mkdir(parents=True)
    for _ in range(2):
        found = cuda.toolkit(facts, chosen.cache, pip)
        assert found.version == "97.2"
        assert found.includes == (tmp_path / "site" / "nvidia" / "cu97" / "include",)
        assert (found.home / "lib64" / "libcudart.so").exists()
    assert requested == ["cuda-toolkit[nvcc,cccl,crt,cudart,nvvm]==97.2.*"]


def test_a_cuda_without_a_compiler_in_its_packages_lists_all_alternatives(
    chosen: settings.Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "candidates", lambda facts: [nvcc(tmp_path / "other", "13.0")])
    facts = FACTS | dict(cuda="12.8", gpus=[[9, 0]])
    with pytest.raises(SystemExit) as error:
        cuda.toolkit(facts, chosen.cache, lambda *arguments: pytest.fail("nothing is downloaded"))
    said = str(error.value)
    assert f"(seen: 13.0 in {tmp_path / 'other'})" in said
    assert all(way in said for way in ("set CUDA_HOME", "OPERATORS=torchvision", "CUDA_VISIBLE_DEVICES= make install"))


def test_gpus_must_be_named_on_a_machine_without_one(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_CUDA", "1")
    facts = FACTS | dict(cuda="13.0")
    assert cuda.wanted(facts)
    assert not cuda.wanted(FACTS)
    with pytest.raises(SystemExit, match=r"name the GPUs to build for, as TORCH_CUDA_ARCH_LIST='8.0;9.0'"):
        cuda.architectures(facts)
