"""The set-up as a whole."""

import pytest
from installer import settings
from installer.environment import Environment
from installer.main import Setup


def test_an_environment_that_is_ready_is_left_alone(chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen.venv.mkdir()
    chosen.stamp.write_text(Setup(chosen).state())
    monkeypatch.setattr(Environment, "problem", lambda self, code: None)
    Setup(chosen).run()
    assert not chosen.log.exists()
    # With another PyTorch or other operators the environment is not ready.
    for name, value in (("TORCH", "torch==2.9.1"), ("OPERATORS", "plain")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not Setup(settings.read()).ready()
