"""A headless Chromium, steered by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_WAIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of what a page shows, in pixels."""

    x: int
    y: int
    width: int
    height: int


class Browser:
    """One page of a browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._count = 0

    def ask(self, method: str, **params: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
        """Send a command and return its answer."""
        self._count += 1
        self._connection.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            answer = json.loads(self._connection.recv())
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found

    def run(self, script: str) -> Any:  # noqa: ANN401  (JSON)
        """Run JavaScript in the page and return its value."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def go(self, address: str) -> None:
        """Open a page."""
        self.ask("Page.navigate", url=address)

    def wait_for(self, condition: str) -> None:
        """Wait until JavaScript finds a condition true.

        Raises:
            TimeoutError: It does not become true; with the page's text.
        """
        until = time.monotonic() + _WAIT_SECONDS
        while not self.run(f"Boolean({condition})"):
            if time.monotonic() > until:
                text = self.run("document.body.innerText")
                raise TimeoutError(f"{condition} did not come true on this page:\n{text}")
            time.sleep(0.2)

    def wait_for_text(self, text: str) -> None:
        """Wait until the page shows a text."""
        self.wait_for(f"document.body.innerText.includes({json.dumps(text)})")

    def click(self, text: str) -> None:
        """Click on the button whose label begins so, once it is there and can be clicked on."""
        found = (
            "[...document.querySelectorAll('button, [role=tab], [role=radio]')].find(e =>"
            f" e.innerText.trim().startsWith({json.dumps(text)}) && e.offsetParent && !e.disabled)"
        )
        self.wait_for(found)
        self.run(f"{found}.click()")

    def scroll_to(self, text: str) -> None:
        """Bring a heading that ends so to the top of what the page shows."""
        found = (
            "[...document.querySelectorAll('*')].find(e => !e.children.length"
            f" && e.textContent.trim().endsWith({json.dumps(text)}))"
        )
        self.wait_for(found)
        self.run(f"{found}.scrollIntoView({{block: 'start'}})")

    def picture(self, file: Path, clip: Clip) -> None:
        """Write a part of what the page shows as a PNG."""
        answer = self.ask("Page.captureScreenshot", format="png", clip={**asdict(clip), "scale": 1})
        file.write_bytes(base64.b64decode(answer["data"]))


@contextmanager
def browser(width: int, height: int) -> Iterator[Browser]:
    """Open a browser for the length of a block.

    Raises:
        SystemExit: None is installed.
    """
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        raise SystemExit(f"A browser is needed for this, and was not found: {', '.join(_NAMES)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                *(["--no-sandbox"] if os.geteuid() == 0 else []),
                "--remote-debugging-port=0",
                f"--user-data-dir={home}",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield from _page(Path(home), width, height)
        finally:
            process.terminate()
            process.wait()


def _page(home: Path, width: int, height: int) -> Iterator[Browser]:
    address = _debugger(home / "DevToolsActivePort")
    with connect(address, max_size=None) as connection:
        whole = Browser(connection)
        target = whole.ask("Target.createTarget", url="about:blank")
    page = f"{address.split('/devtools/')[0]}/devtools/page/{target['targetId']}"
    with connect(page, max_size=None) as connection:
        shown = Browser(connection)
        shown.ask("Page.enable")
        shown.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        yield shown


def _debugger(file: Path) -> str:
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until:
        with suppress(FileNotFoundError):
            port, path, *_ = [*file.read_text().split("\n"), ""]
            if path:
                return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.1)
    raise TimeoutError("the browser did not open its debugging port")
