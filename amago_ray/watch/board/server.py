"""The board as a web server: its pages, the JSON that they ask for, pictures of runs, rollouts as they are played."""

from __future__ import annotations

import asyncio
import gzip
import json
import mimetypes
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web

from amago_ray.watch.board import payloads
from amago_ray.watch.board.curves import curve
from amago_ray.watch.board.library import MEDIA, Library, Run
from amago_ray.watch.board.rollouts import PlayedRollout
from amago_ray.watch.metrics import finite_json

STATIC = Path(__file__).parent / "static"
PAGES = {"/": "board.html", "/rollout": "rollout.html"}
BUDGET_S = 0.5  # of reading logs, per request
MAX_POINTS, MAX_CURVES = 2000, 2000  # of one curve, and of one answer
STORED_FRACTION = 0.05  # of the time that is spent looking into one replay, at the most
MAX_ADDRESS_BYTES = 2**18  # with the names of hundreds of runs in it
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Board:
    """Answers requests about the runs of `library`; `application` is what aiohttp serves.

    inspect: command that plays a rollout; the run's folder and options are put behind it. host: that it is bound to.
    What a request names is looked up among what was found on the disk; nothing of it becomes part of a path.
    """

    def __init__(self, library: Library, inspect: Sequence[str], host: str):
        self._library, self._inspect, self._host = library, inspect, host
        self._reader = ThreadPoolExecutor(1, "board")  # one at a time: runs are changed as they are read
        self._stored_reader = ThreadPoolExecutor(1, "board-replay")
        self._stored: dict[str, tuple[float, dict[str, Any]]] = {}  # run -> until when it holds, what is stored
        self.application = web.Application(middlewares=[self._guarded])
        get = self.application.router.add_get
        for path, file in PAGES.items():
            get(path, partial(self._static, file))
        get("/static/{file}", self._static_file)
        get("/plotly.js", self._plotly)
        get("/media", self._media)
        for path, answer in {
            "/api/runs": self._runs,
            "/api/names": self._names,
            "/api/curves": self._curves,
            "/api/run": self._run,
            "/api/settings": self._settings,
        }.items():
            get(path, partial(self._json, self._reader, answer))
        get("/api/replay", partial(self._json, self._stored_reader, self._replay))
        self.application.router.add_post("/api/rollout", self._rollout)
        self.application.on_cleanup.append(self._close)

    async def _close(self, _: web.Application) -> None:
        for executor in (self._reader, self._stored_reader):
            executor.shutdown(wait=False, cancel_futures=True)

    # ---------------------------------------------------------------- what requests have in common

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what another site's page could ask through the user's browser; mistakes become JSON of one line."""
        try:
            if self._host in LOOPBACK and request.url.host not in LOOPBACK:
                return _error(403, f"this board answers to localhost, not to {request.url.host}")
            response = await handler(request)
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except KeyError as error:
            return _error(404, f"there is no run {error.args[0]!r} any more" if error.args else "not found")
        # The latter two are of charsets that nobody knows, and of JSON that lies too deep.
        except (OSError, ValueError, LookupError, RecursionError) as error:
            return _error(400, str(error))
        if not response.prepared:
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
        return response

    async def _json(
        self, executor: ThreadPoolExecutor, answer: Callable[[web.Request], Any], request: web.Request
    ) -> web.Response:
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(executor, lambda: _encoded(answer(request)))
        response = web.Response(text=text, content_type="application/json")
        response.enable_compression()
        return response

    def _chosen(self, request: web.Request) -> list[Run]:
        """The runs that a request names. Raises KeyError for one that is not there."""
        return self._read(request.query.getall("run", []))

    def _named(self, name: str) -> Run:
        return self._read([name])[0]

    def _read(self, names: Sequence[str]) -> list[Run]:
        """Runs, with what is new of them as far as BUDGET_S goes."""
        self._library.scan()
        runs = [self._library.runs[name] for name in names]
        deadline = time.monotonic() + BUDGET_S
        for run in runs:
            run.refresh(deadline)
        return runs

    def _one(self, request: web.Request) -> Run:
        runs = self._chosen(request)
        if len(runs) != 1:
            raise ValueError("name one run")
        return runs[0]

    # ---------------------------------------------------------------- files

    async def _static(self, file: str, request: web.Request) -> web.StreamResponse:
        content_type = mimetypes.guess_type(file)[0] or "application/octet-stream"
        return web.Response(body=(STATIC / file).read_bytes(), content_type=content_type, charset="utf-8")

    async def _static_file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["file"]
        if name not in {path.name for path in STATIC.iterdir()}:
            raise web.HTTPNotFound()
        return await self._static(name, request)

    async def _plotly(self, request: web.Request) -> web.StreamResponse:
        headers = {"Content-Encoding": "gzip", "Cache-Control": "max-age=86400"}
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(None, _compressed_plotly)
        return web.Response(body=body, content_type="text/javascript", headers=headers)

    async def _media(self, request: web.Request) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        run = await loop.run_in_executor(self._reader, self._one, request)
        media = run.media().get(request.query.get("file", ""))
        if media is None:
            raise web.HTTPNotFound(reason="there is no such picture")
        return web.FileResponse(media.path, headers={"Content-Type": MEDIA[media.path.suffix.lower()]})

    # ---------------------------------------------------------------- answers, made in a thread

    def _runs(self, request: web.Request) -> dict[str, Any]:
        self._library.scan()
        complete = self._library.refresh(BUDGET_S)
        return payloads.list_of_runs(self._library, complete)

    def _names(self, request: web.Request) -> list[str]:
        return payloads.names_of_metrics(self._chosen(request))

    def _curves(self, request: web.Request) -> dict[str, Any]:
        runs, names = self._chosen(request), request.query.getall("name", [])
        axis = request.query.get("axis", "total_frames")
        points = min(int(request.query.get("points", 500)), MAX_POINTS)
        smooth = float(request.query.get("smooth", 0.0))
        if len(runs) * len(names) > MAX_CURVES:
            raise ValueError(f"{len(runs)} runs and {len(names)} metrics: ask for fewer than {MAX_CURVES} curves")
        return {
            run.id: {"version": run.log.version, "curves": {n: curve(run.log, n, axis, points, smooth) for n in names}}
            for run in runs
        }

    def _run(self, request: web.Request) -> dict[str, Any]:
        return payloads.run_details(self._one(request))

    def _settings(self, request: web.Request) -> list[dict[str, Any]]:
        return payloads.settings_of(self._chosen(request))

    def _replay(self, request: web.Request) -> dict[str, Any]:
        run = self._reader.submit(self._one, request).result()
        until, found = self._stored.get(run.id, (0.0, {}))
        began = time.monotonic()
        if began >= until:
            found = payloads.stored(run)
            took_s = time.monotonic() - began
            self._stored[run.id] = time.monotonic() + max(took_s / STORED_FRACTION, 2.0), found
        return found

    # ---------------------------------------------------------------- a rollout

    async def _rollout(self, request: web.Request) -> web.StreamResponse:
        """Play a rollout and pass its lines on as they come; it ends when the reader goes away.

        Only JSON is accepted, which another site's page cannot send here.
        """
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(reason="send the rollout's options as application/json")
        options = await request.json()
        if not isinstance(options, dict):
            raise ValueError("send the rollout's options as one JSON object")
        loop = asyncio.get_running_loop()
        run = await loop.run_in_executor(self._reader, self._named, str(options.get("run", "")))
        played = PlayedRollout.command([*self._inspect, str(run.root)], options)
        response = web.StreamResponse(headers={**HEADERS, "Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async with PlayedRollout(played) as rollout:
            async for line in rollout.lines():
                await response.write(line)
        await response.write_eof()
        return response


def _encoded(value: Any) -> str:
    return json.dumps(finite_json(value), allow_nan=False)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=HEADERS)


_PLOTLY: dict[str, bytes] = {}


def _compressed_plotly() -> bytes:
    if "js" not in _PLOTLY:
        file = resources.files("plotly") / "package_data" / "plotly.min.js"
        _PLOTLY["js"] = gzip.compress(file.read_bytes(), 6)
    return _PLOTLY["js"]


async def serve(board: Board, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until it is cancelled. ready: told the address. Raises OSError where it cannot be bound."""
    runner = web.AppRunner(
        board.application,
        access_log=None,
        handler_cancellation=True,  # a rollout ends when nobody looks any more
        max_line_size=MAX_ADDRESS_BYTES,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound: Mapping[int, Any] = dict(enumerate(runner.addresses[0]))
        ready(f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
