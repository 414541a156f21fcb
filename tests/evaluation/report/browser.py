"""A headless Chromium that says what a page asks of the network and what it writes to the console.

It is spoken to in the DevTools protocol, over two pipes that it finds as file descriptors 3 and 4.
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
_PATIENCE = 120  # seconds for an answer
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
    """The program, where there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """A page in a browser of its own; a context manager.

    Attributes:
        requests: addresses that the page asked for, itself and data URIs left out.
        messages: what it wrote to the console, and what the browser complained about.
    """

    def __init__(self, program: str, profile: Path):
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._loaded, self._url, self._count, self._rest, self._session = False, "", 0, b"", None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            close_fds=False,
            preexec_fn=lambda: (os.dup2(high[0], 3), os.dup2(high[1], 4)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in high:
            os.close(end)

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
        """Goes to the page and returns when everything in it is loaded."""
        self._loaded, self._url = False, url
        self.call("Page.navigate", url=url)
        while not self._loaded:
            self._receive()
        self.evaluate("new Promise(done => setTimeout(done, 500))")  # what a page does late

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Draws the page as a window of that size shows it."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Asks the browser for something and returns its answer."""
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._count, "method": method, "params": parameters, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; an event is taken down."""
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(end - time.monotonic(), 0))
            assert ready, f"the browser has said nothing for {_PATIENCE} seconds"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        text, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(text)
        self._take_down(message.get("method", ""), message.get("params", {}))
        return message

    def _take_down(self, event: str, said: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            url = said["request"]["url"]
            if url != self._url and not url.startswith("data:"):
                self.requests.append(url)
        elif event == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(argument.get("value")) for argument in said["args"]))
        elif event == "Runtime.exceptionThrown":
            self.messages.append(said["exceptionDetails"]["text"])
        elif event == "Log.entryAdded":
            self.messages.append(said["entry"]["text"])
