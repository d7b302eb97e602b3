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


def test_a_finished_set_up_names_the_mmcv_that_it_installed(
    chosen: settings.Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With OPERATORS=torchvision that is mmcv-lite, as mmcv's own setup.py names itself without operators."""
    chosen.venv.mkdir()
    chosen.unfinished.touch()
    installed = {"torch": "2.15.0", "mmcv-lite": "2.1.0", "mmdet": "3.3.0"}
    monkeypatch.setattr(
        Environment, "versions", lambda self, *names: {name: installed[name] for name in names if name in installed}
    )
    Setup(chosen).finish()
    assert "torch 2.15.0, mmcv-lite 2.1.0, mmdet 3.3.0: " in capsys.readouterr().out
    assert chosen.stamp.exists()
    assert not chosen.unfinished.exists()
