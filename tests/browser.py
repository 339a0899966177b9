"""A headless Chromium that opens a page, says what it asked the network for and complained of, and takes its picture.

It is driven through its debugging pipe (file descriptors 3 and 4, JSON that ends in a zero byte), so that no package is
needed.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
TIMEOUT = 120  # seconds


class Browser:
    """A context manager. `requests` holds addresses other than the page's own and `data:`, `complaints` messages."""

    def __init__(self, profile: Path):
        assert PROGRAM is not None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._rest = b""
        self._page = ""
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        words += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        its_in, self._out = os.pipe()
        self._in, its_out = os.pipe()

        def wire() -> None:  # through high numbers, for 3 and 4 may be taken by the other ends
            os.dup2(its_in, 103), os.dup2(its_out, 104)
            os.dup2(103, 3), os.dup2(104, 4)

        self._process = subprocess.Popen(
            [PROGRAM, *words], preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(its_in)
        os.close(its_out)

    def __enter__(self) -> "Browser":
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._page = self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._do(f"{domain}.enable")
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT)
        os.close(self._in)
        os.close(self._out)

    def open(self, page: Path, scheme: str = "light", width: int = 1250) -> None:
        """Open a page and wait until all of it is there."""
        self._do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._do("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._own = page.resolve().as_uri()
        self._do("Page.navigate", url=self._own)
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is on the page."""
        return self._do("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def picture(self, path: Path) -> None:
        shot = self._do("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _do(self, method: str, **arguments: Any) -> dict[str, Any]:
        number = next(self._numbers)
        session = {"sessionId": self._page} if self._page else {}
        message = {"id": number, "method": method, "params": arguments, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def _until(self, fits: Any) -> dict[str, Any]:
        end = time.monotonic() + TIMEOUT
        while True:
            while b"\0" not in self._rest:
                assert select.select([self._in], [], [], max(0, end - time.monotonic()))[0], "the browser is silent"
                piece = os.read(self._in, 1 << 20)
                assert piece, "the browser has ended"
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\0")
            message = json.loads(line)
            self._note(message.get("method", ""), message.get("params", {}))
            if fits(message):
                return message

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if url != self._own and not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Log.entryAdded":
            self.complaints.append(about["entry"]["text"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(about)[:500])
