"""What the user sees."""

import io
import time
from pathlib import Path

import pytest
from installer import output


def test_progress_is_shown_on_a_terminal_and_in_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(output, "SAY_AGAIN", 0)
    for stream, expected in ((Terminal(), "\r    0 s of about 1 min 30 s"), (io.StringIO(), "    0 s of about 1 min")):
        progress = output.Progress(2, tmp_path / "log", stream)
        with progress.step("PyTorch", 90):
            progress.watch(output.Job(("sleep", "0.5"), tmp_path / "log", tmp_path))
        said = capsys.readouterr().out
        assert f"==> [1/2] PyTorch: about 1 min 30 s (log: {tmp_path / 'log'})\n" in said
        assert expected in said
        progress.times = [("PyTorch", 61.0), ("nothing", 0.1)]
        assert progress.summary().endswith("(PyTorch 1 min 01 s)")


def test_an_interrupted_step_kills_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = output.Progress(1, tmp_path / "log")
    job = output.Job(("sh", "-c", f"sleep 60 & echo $! > {tmp_path}/child; wait"), tmp_path / "log", tmp_path)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
        time.sleep(0.05)

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        progress.watch(job)
    monkeypatch.undo()
    status = Path("/proc", (tmp_path / "child").read_text().strip(), "status")
    ended = time.monotonic() + 10
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < ended
        time.sleep(0.05)
