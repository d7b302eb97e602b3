"""Why a step failed."""

import pytest
from installer import causes, output, settings
from installer.commands import Commands
from installer.environment import Environment


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("sh: 1: c++: not found", "compiler"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'c++'", "compiler"),
        ("pybind.h:12:10: fatal error: Python.h: No such file or directory", "headers"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "memory"),
        ("virtual memory exhausted: Cannot allocate memory", "memory"),
        ("fatal error: error writing to /tmp/ccX.s: No space left on device", "disk"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(Failed to establish a "
            "new connection: [Errno -3] Temporary failure in name resolution)'\nERROR: Could not find a version that "
            "satisfies the requirement torch (from versions: none)\nERROR: No matching distribution found for torch",
            "network",
        ),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.", "network"),
        ("ImportError: /x/mmcv/_ext.so: undefined symbol: _ZN3c106detail14torchCheckFailE", "another pytorch"),
        ("ImportError: /x/mmcv/_ext.so: undefined symbol: _ZN2at4_ops10zeros_like4callE", "another pytorch"),
        ("ImportError: libxcb.so.1: cannot open shared object file: No such file or directory", "opencv"),
        ("ImportError: libGL.so.1: cannot open shared object file: No such file or directory", "opencv"),
        (
            "ERROR: Ignored the following versions that require a different python version: 0.1 Requires-Python <3.12\n"
            "ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "python",
        ),
        (
            "RuntimeError: The detected CUDA version (12.4) mismatches the version that was used to compile PyTorch "
            "(13.0). Please make sure to use the same CUDA versions.",
            "cuda version",
        ),
        (
            "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA install root.",
            "cuda toolkit",
        ),
        ("c++: error: unrecognized command-line option '-std=c++20'", "standard"),
    ],
)
def test_each_cause_is_recognised_and_explained(chosen: settings.Settings, said: str, name: str) -> None:
    found = causes.find(f"building\n{said}\nerror: command failed")
    assert found is not None
    assert found.name == name
    chosen.venv.mkdir()
    commands = Commands(Environment(chosen), steps=1)
    with pytest.raises(SystemExit) as error:
        commands.watch(commands.start("sh", "-c", 'printf "%s" "$0"; exit 1', said))
    assert said in str(error.value)
    assert str(error.value).endswith(f"  -> {found.way_out}")
    assert str(chosen.log) in str(error.value)


def test_an_unknown_cause_shows_the_output_without_advice() -> None:
    assert causes.find("error: 'x' was not declared in this scope") is None
    assert "->" not in output.explain("error: 'x' was not declared in this scope")


def test_a_killed_compiler_counts_as_out_of_memory(chosen: settings.Settings) -> None:
    chosen.venv.mkdir()
    commands = Commands(Environment(chosen), steps=1)
    with pytest.raises(SystemExit, match="MAX_JOBS=1"):
        commands.watch(commands.start("sh", "-c", "kill -9 $$"))
