"""A headless Chromium, spoken to by its DevTools protocol: no driver and no package beside aiohttp is needed."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
LISTENS = "DevTools listening on "


class Chromium:
    """One window with one page.

    async with Chromium(tmp_path / "profile") as browser:
        await browser.open("http://127.0.0.1:6010/")
        await browser.until("document.querySelectorAll('.chart').length > 3")

    complaints: exceptions and errors of pages, in words. asked: addresses that pages asked for.
    """

    def __init__(self, profile: Path, width: int = 1440, height: int = 1000):
        self._profile, self._size = profile, (width, height)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def __aenter__(self) -> Chromium:
        found = next((path for name in NAMES if (path := shutil.which(name))), None)
        assert found is not None, "this test needs Chromium: apt-get install chromium"
        width, height = self._size
        self._process = await asyncio.create_subprocess_exec(
            found,
            *OPTIONS,
            f"--user-data-dir={self._profile}",
            f"--window-size={width},{height}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        address = ""
        while not address:
            line = (await asyncio.wait_for(self._process.stderr.readline(), 120)).decode()
            assert line, f"{found} has ended"
            address = line.partition(LISTENS)[2].strip()
        self._drain = asyncio.create_task(self._process.stderr.read())
        self._session = ClientSession()
        host = address.split("/")[2]
        async with self._session.get(f"http://{host}/json/list") as answer:
            page = next(target for target in await answer.json() if target["type"] == "page")
        self._socket: ClientWebSocketResponse = await self._session.ws_connect(
            page["webSocketDebuggerUrl"], max_msg_size=0
        )
        self._listener = asyncio.create_task(self._listen())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.cancel()
        await self._socket.close()
        await self._session.close()
        self._process.terminate()
        await self._process.wait()
        self._drain.cancel()

    async def _listen(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                self._answers.pop(content["id"]).set_result(content)
                continue
            about = content["params"]
            match content["method"]:
                case "Runtime.exceptionThrown":
                    details = about["exceptionDetails"]
                    self.complaints.append(details.get("exception", {}).get("description", details["text"]))
                case "Log.entryAdded" if about["entry"]["level"] == "error":
                    self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
                case "Network.requestWillBeSent":
                    self.asked.append(about["request"]["url"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol. Raises RuntimeError where it is refused."""
        number = len(self._answers) + 1 + max(self._answers, default=0)
        self._answers[number] = asyncio.get_running_loop().create_future()
        waiting = self._answers[number]
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        answer = await asyncio.wait_for(waiting, 120)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def open(self, address: str) -> None:
        await self.call("Page.navigate", url="about:blank")
        await self.call("Page.navigate", url=address)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited. Raises RuntimeError for what it throws."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception']['description']}")
        return answer["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 120.0) -> Any:
        """Wait until an expression is true; returns its value."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            value = await self.evaluate(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()")
            if value:
                return value
            if asyncio.get_running_loop().time() > deadline:
                text = await self.evaluate("document.body.innerText.slice(0, 1500)")
                raise AssertionError(f"page:\n{text}\nwaited in vain for {expression}; complaints: {self.complaints}")
            await asyncio.sleep(0.1)  # between two looks

    async def click(self, selector: str) -> None:
        await self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    async def picture(self, file: Path) -> Path:
        """What the window shows, as a PNG."""
        answer = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(answer["data"]))
        return file
