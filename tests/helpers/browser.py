"""A headless Chromium, driven through the DevTools protocol over a pipe, which needs no package."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PROGRAM = next((path for name in NAMES if (path := shutil.which(name))), None)
needed = pytest.mark.skipif(PROGRAM is None or shutil.which("bash") is None, reason="no Chromium, or no bash")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


class Browser:
    """One page of a browser, which ends with the ``with`` block.

    Attributes:
        requests: The addresses of everything that the page asked for.
        errors: What went wrong in the page: messages of its console, and of scripts that failed.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._events: list[str] = []
        self._count = 0

    def __enter__(self) -> "Browser":
        with ExitStack() as stack:
            # Chromium reads from descriptor 3 and writes to 4; bash gives them these numbers.
            theirs, to_browser = os.pipe()
            from_browser, also_theirs = os.pipe()
            self._to = stack.enter_context(os.fdopen(to_browser, "wb"))
            self._from = stack.enter_context(os.fdopen(from_browser, "rb"))
            profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            command = [str(PROGRAM), *_OPTIONS, f"--user-data-dir={profile}", "about:blank"]
            redirected = f'exec "$@" 3<&{theirs} 4>&{also_theirs}'
            self._process = subprocess.Popen(
                ["bash", "-c", redirected, "bash", *command],
                pass_fds=(theirs, also_theirs),
                stderr=subprocess.DEVNULL,
            )
            stack.callback(self._process.wait, 30)
            stack.callback(self._process.kill)
            os.close(theirs)
            os.close(also_theirs)
            self._session = ""
            [page] = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"]
            target = dict(targetId=page["targetId"], flatten=True)
            self._session = self.send("Target.attachToTarget", **target)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.send(f"{domain}.enable")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._count += 1
        message = dict(id=self._count, method=method, params=parameters)
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (answer := self._read()).get("id") != self._count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, path: Path, width: int = 1200, height: int = 900) -> None:
        """Open a file in a window of this size, in pixels of CSS, and wait until it is loaded."""
        self.size(width, height)
        self.requests.clear()
        self.errors.clear()
        self._events.clear()
        self.send("Page.navigate", url=path.absolute().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._read()

    def size(self, width: int, height: int = 900) -> None:
        """Change the window's size; one that is narrow is a phone's, which shows the page as its viewport says."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def media(self, kind: str = "", **features: str) -> None:
        """Show the page as on another medium, such as 'print', or for wishes such as prefers_color_scheme='dark'."""
        wishes = [dict(name=name.replace("_", "-"), value=value) for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", media=kind, features=wishes)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']['exception']['description']}")
        return found["result"].get("value")

    def click(self, selector: str, number: int = 0) -> None:
        """Press and release the mouse in the middle of an element, the ``number``-th that fits the selector."""
        place = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        self.run(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({place}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key, such as 'Enter' or 'Tab'."""
        codes = dict(Enter=13, Escape=27, Tab=9)
        known = dict(key=key, code=key, windowsVirtualKeyCode=codes[key])
        self.send("Input.dispatchKeyEvent", type="keyDown", **known, **(dict(text="\r") if key == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **known)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit a selector."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent.trim())")

    def screenshot(self, path: Path) -> Path:
        """Write the whole page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = dict(x=0, y=0, width=size["width"], height=size["height"], scale=1)
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(data["data"]))
        return path

    def pdf(self) -> bytes:
        """The page, printed to PDF as its style sheet says."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])

    def _read(self) -> dict[str, Any]:
        letters = bytearray()
        while (letter := self._from.read(1)) != b"\0":
            if not letter:
                raise RuntimeError("the browser ended")
            letters += letter
        message = json.loads(letters)
        method, found = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(found["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            self.errors.append(found["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str(found["args"]))
        return message
