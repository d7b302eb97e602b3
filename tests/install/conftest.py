from pathlib import Path

import pytest
from installer import settings


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    """The default choices, for an environment that does not exist yet, in a folder with a space in its name."""
    for name in ("STACK", "TORCH", "TORCH_ARGS", "OPERATORS", "CXX", "CUDA_HOME", "CUDA_PATH", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setenv("VENV", str(tmp_path / "my env"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my cache"))
    return settings.read()
