"""A headless Chromium that records the network requests and the console messages of a page.

Uses the DevTools protocol over two pipes, which are file descriptors 3 and 4 of the browser.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_TIMEOUT = 120  # seconds to wait for a response
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_browser() -> str | None:
    """Returns the path of the browser, or None if it is not installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """Context manager for a page in a new browser.

    Attributes:
        requests: URLs requested by the page, except data URIs and the URL of the page.
        messages: console output, exceptions, and warnings of the browser.
    """

    def __init__(self, executable: str, profile: Path):
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._loaded, self._url, self._count, self._buffer, self._session = False, "", 0, b"", None
        browser_in, self._out = os.pipe()
        self._in, browser_out = os.pipe()
        duplicates = [fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, 10) for pipe in (browser_in, browser_out)]
        os.close(browser_in)
        os.close(browser_out)
        self._process = subprocess.Popen(
            [executable, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=lambda: (os.dup2(duplicates[0], 3), os.dup2(duplicates[1], 4)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for pipe in duplicates:
            os.close(pipe)

    def __enter__(self) -> Tab:
        pages = [target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"]
        target = pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        os.close(self._in)
        os.close(self._out)

    def open(self, url: str) -> None:
        """Navigates to the URL and waits until the page has loaded."""
        self._loaded, self._url = False, url
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._receive()
        self.evaluate("new Promise(done => setTimeout(done, 500))")  # for delayed requests

    def evaluate(self, expression: str) -> Any:
        """Evaluates a JavaScript expression in the page and returns its value."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Writes a PNG screenshot of the page in a window of `width` x `height` pixels."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the browser and returns its result."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._count, "method": method, "params": parameters, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            response = self._receive()
            if response.get("id") == self._count:
                assert "error" not in response, (method, response["error"])
                return response["result"]

    def _receive(self) -> dict[str, Any]:
        """Reads the next message, and records it if it is an event."""
        deadline = time.monotonic() + _TIMEOUT
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"no message from the browser in {_TIMEOUT} seconds"
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has exited"
            self._buffer += chunk
        text, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(text)
        self._record(message.get("method", ""), message.get("params", {}))
        return message

    def _record(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if url != self._url and not url.startswith("data:"):
                self.requests.append(url)
        elif event == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(argument.get("value")) for argument in params["args"]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(params["exceptionDetails"]["text"])
        elif event == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
