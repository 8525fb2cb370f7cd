"""A headless Chromium, driven over its DevTools protocol: the system's own, nothing is downloaded.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--force-color-profile=srgb",
)  # fmt: skip
KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def found() -> str | None:
    """Where Chromium is, if it is there."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One browser with one page; `problems` are errors, dialogs and refusals that the page met."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        program, root = found(), ["--no-sandbox"] if os.geteuid() == 0 else []
        assert program is not None, "there is no Chromium"
        command = [program, *FLAGS, *root, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = profile / "DevToolsActivePort"
        until = time.monotonic() + 120
        while not (told.exists() and told.read_text().count("\n")):
            assert time.monotonic() < until and self._process.poll() is None, "Chromium does not start"
            time.sleep(0.05)
        port = told.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self._open = ExitStack()
        address = page["webSocketDebuggerUrl"]
        self._socket = self._open.enter_context(connect(address, max_size=None, open_timeout=60, ping_interval=None))
        self._sent = 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait(30)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = self._post(method, params)
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']['message']}"
                return message["result"]
            self._hear(message)

    def _post(self, method: str, params: dict[str, Any]) -> int:
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": params}))
        return self._sent

    def _hear(self, message: dict[str, Any]) -> None:
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(about["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif message.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.problems.append(about["entry"]["text"])
        elif message.get("method") == "Page.javascriptDialogOpening":
            self.problems.append(f"a dialog: {about['message']}")
            self._post("Page.handleJavaScriptDialog", {"accept": True})

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        out = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in out, out["exceptionDetails"]
        return out["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < until, f"never true: {expression}; {self.text('body')}; {self.problems}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """What a person sees of an element."""
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a mouse does."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{place}.scrollIntoView({{block: 'center'}})")
        x, y = self.js(f"(() => {{ const r = {place}.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Type text into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": "\r"} if key == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a <select>."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.js(f"{place}.value = {json.dumps(value)}; {place}.dispatchEvent(new Event('change', {{bubbles: true}}))")

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in a file field."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screen(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """The size of the window, and whether the system is set to dark."""
        phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path, whole: bool = False) -> None:
        """A screenshot, of the window or of the whole page."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def description(self, selector: str) -> str:
        """What a screen reader says of an element beside its name."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        told = self.send("Accessibility.getPartialAXTree", nodeId=node, fetchRelatives=False)["nodes"][0]
        return told.get("description", {}).get("value", "")

    def controls(self) -> list[tuple[str, str]]:
        """Role and name of what a screen reader can operate."""
        roles = {"button", "checkbox", "textbox", "combobox", "link", "progressbar", "DisclosureTriangle"}
        nodes = [n for n in self.send("Accessibility.getFullAXTree")["nodes"] if not n.get("ignored")]
        named = [(n.get("role", {}).get("value"), n.get("name", {}).get("value", "")) for n in nodes]
        return [(role, name) for role, name in named if role in roles]
