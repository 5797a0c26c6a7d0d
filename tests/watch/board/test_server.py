"""The board as a browser sees it, over HTTP, in this process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession
from watch.test_run_status import make_run
from yarl import URL

from amago_ray.watch.board import library as library_module
from amago_ray.watch.board.library import Library
from amago_ray.watch.board.server import STATIC, Board, serve
from amago_ray.watch.metrics import AVERAGE_RETURN, MetricsLog, Progress

RETURN = f"collect/{AVERAGE_RETURN}"
Session = Callable[[Any], Awaitable[None]]


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "SCAN_INTERVAL_S", 0.0)


def look(folder: Path, session: Session, *, host: str = "127.0.0.1", inspect: tuple[str, ...] = ("false",)) -> None:
    """Serve the runs below a folder for as long as a browser's session takes."""

    async def run() -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        board = Board(Library([folder]), inspect, host)
        server = asyncio.create_task(serve(board, "127.0.0.1", 0, ready.set_result))
        async with ClientSession(await ready) as client:
            await session(client)
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)

    asyncio.run(run())


async def ask(client: Any, path: str, status: int = 200, **query: Any) -> Any:
    """Strict JSON: a browser stops at NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    pairs = [(k, v) for k, vs in query.items() for v in ([vs] if isinstance(vs, str) else vs)]
    answer = await client.get(path, params=pairs)
    text = await answer.text()
    assert answer.status == status, text
    return json.loads(text, parse_constant=refuse)


def test_pages_come_whole_and_from_here_alone(tmp_path: Path) -> None:
    async def session(client: Any) -> None:
        for page in ("/", "/rollout"):
            answer = await client.get(page)
            text = await answer.text()
            assert answer.status == 200 and answer.content_type == "text/html"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            for address in re.findall(r'(?:src|href)="([^"]+)"', text):
                assert address.startswith("/") and (await client.get(address)).status == 200, address
        plotly = await client.get("/plotly.js")
        assert plotly.content_type == "text/javascript" and "Plotly" in (await plotly.text())[:5000]
        for file in STATIC.iterdir():
            answer = await client.get(f"/static/{file.name}")
            assert answer.status == 200
            away = re.findall(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text())
            assert not away, f"{file.name} asks another machine"
            for name in re.findall(r'from "\./(\w+\.js)"', file.read_text()):
                assert (STATIC / name).is_file()

    look(tmp_path, session)


def test_a_run_is_followed_as_it_goes_on_and_when_it_is_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3)
    log = MetricsLog(run.root, resume=True)

    async def returns(client: Any) -> list[float | None]:
        answer = await ask(client, "/api/curves", run="run", name=RETURN, axis="epoch")
        return answer["run"]["curves"][RETURN]["y"]

    async def session(client: Any) -> None:
        listed = await ask(client, "/api/runs")
        (row,) = listed["runs"]
        assert listed["complete"] and (row["id"], row["epoch"], row["epochs"]) == ("run", 3, 20)
        assert await returns(client) == [None, 1.0, 2.0]
        log.log("collect", {AVERAGE_RETURN: 9.0}, Progress(3, 240, {"A": 4000}, 120.0))
        assert await returns(client) == [None, 1.0, 2.0, 9.0]
        (grown,) = (await ask(client, "/api/runs"))["runs"]
        assert grown["version"] != row["version"] and grown["epoch"] == 4
        log.rewind(0)
        assert await returns(client) == [None]
        log.log("collect", {AVERAGE_RETURN: 7.0}, Progress(1, 120, {"A": 2000}, 61.0))
        assert await returns(client) == [None, 7.0]
        assert (await ask(client, "/api/runs"))["runs"][0]["epoch"] == 2
        assert RETURN in await ask(client, "/api/names", run="run")

    look(tmp_path, session)
    log.close()


def test_what_is_damaged_does_not_break_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path, 2)
    row = {"section": "collect", "epoch": 2, "total_frames": 3000, "gradient_steps": 180, "wall_s": 90.0}
    with open(run.root / "metrics.jsonl", "a") as file:
        file.write(json.dumps({**row, RETURN: float("nan"), "collect/Frames per Second": float("inf")}) + "\n")
        file.write("}{ broken\n" + json.dumps({**row, RETURN: 5.0})[:50])

    async def session(client: Any) -> None:
        (listed,) = (await ask(client, "/api/runs"))["runs"]
        assert listed["epoch"] == 3 and listed["broken"] == 1 and listed["collect_return"]["value"] == 1.0
        curves = (await ask(client, "/api/curves", run="run", name=[RETURN, "no such"]))["run"]["curves"]
        assert curves[RETURN]["y"] == [None, 1.0, None] and curves["no such"] == {"x": [], "y": []}
        about = await ask(client, "/api/run", run="run")
        assert about["epochs"] == [1, 2, 3] and all(len(shares) == 3 for shares in about["parts"].values())

    look(tmp_path, session)


def test_mistakes_are_answers_of_one_line(tmp_path: Path) -> None:
    make_run(tmp_path, 1)

    async def session(client: Any) -> None:
        gone = await ask(client, "/api/run", 404, run="another")
        assert gone == {"error": "there is no run 'another' any more"}
        assert "name one run" in (await ask(client, "/api/run", 400))["error"]
        assert "axis='time'" in (await ask(client, "/api/curves", 400, run="run", name=RETURN, axis="time"))["error"]
        assert "ask for fewer" in (await ask(client, "/api/curves", 400, run="run", name=["x"] * 2001))["error"]
        assert (await ask(client, "/api/curves", 400, run="run", name="x", points="many"))["error"]
        assert await ask(client, "/api/nothing", 404)

    look(tmp_path, session)


def test_requests_that_cannot_be_read_are_mistakes_too(tmp_path: Path) -> None:
    make_run(tmp_path, 1)

    async def session(client: Any) -> None:
        for host in ("a:b:c", "localhost:99999999"):
            answer = await client.get("/api/runs", headers={"Host": host})
            assert answer.status == 400 and (await answer.json())["error"], host
        for body, charset in (("{}", "nosuch"), ("[" * 100_000, "utf-8")):
            headers = {"Content-Type": f"application/json; charset={charset}"}
            answer = await client.post("/api/rollout", data=body.encode(), headers=headers)
            assert answer.status == 400 and (await answer.json())["error"], charset

    look(tmp_path, session)


def test_a_run_whose_path_is_no_utf8_is_one_like_any_other(tmp_path: Path) -> None:
    make_run(tmp_path / os.fsdecode(b"bad\xff"), 1), make_run(tmp_path / "good", 1)

    async def session(client: Any) -> None:
        names = [row["id"] for row in (await ask(client, "/api/runs"))["runs"]]
        assert set(await ask(client, "/api/curves", run=names, name=RETURN)) == set(names) and len(names) == 2

    look(tmp_path, session)


SECRET = "../secret.png"
ELSEWHERE = (SECRET, "videos/../../secret.png", "/etc/passwd", "config.txt", "ckpts/latest/policy.pt", "link.png", "")
STATICS = ("..%2fserver.py", "%2e%2e/server.py", "../server.py", "", "/etc/passwd")


def test_no_request_leaves_the_folders_of_runs(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    run = make_run(tmp_path / "runs", 1)
    (run.root / "videos").mkdir()
    (run.root / "videos" / "epoch_0.gif").write_bytes(b"GIF89a")
    (run.root / "link.png").symlink_to(tmp_path / "secret.png")

    async def session(client: Any) -> None:
        picture = await client.get("/media", params={"run": "run", "file": "videos/epoch_0.gif"})
        assert picture.status == 200 and picture.content_type == "image/gif" and await picture.read() == b"GIF89a"
        assert [each["file"] for each in (await ask(client, "/api/run", run="run"))["media"]] == ["videos/epoch_0.gif"]
        for file in [*ELSEWHERE, str(tmp_path / "secret.png"), str(run.root / "videos" / "epoch_0.gif")]:
            assert (await client.get("/media", params={"run": "run", "file": file})).status == 404, file
        for name in ("..", "../runs/run", str(run.root), ".", "run/", "run/../run"):
            for path in ("/media", "/api/run", "/api/settings", "/api/replay", "/api/names"):
                answer = await client.get(path, params={"run": name, "file": "videos/epoch_0.gif"})
                assert answer.status == 404, (path, name)
        for name in STATICS:
            assert (await client.get(URL(f"{client._base_url}static/{name}", encoded=True))).status == 404, name

    look(tmp_path / "runs", session)


def test_other_sites_are_refused(tmp_path: Path) -> None:
    """A page of another site in the same browser can neither read, by a name that leads here, nor start anything."""
    make_run(tmp_path, 1)

    async def session(client: Any) -> None:
        answer = await client.get("/api/runs", headers={"Host": "attacker.example:6010"})
        assert answer.status == 403 and "attacker.example" in (await answer.json())["error"]
        for host in ("localhost:6010", "127.0.0.1", "[::1]:6010"):
            assert (await client.get("/api/runs", headers={"Host": host})).status == 200
        form = await client.post("/api/rollout", data='{"run": "run"}', headers={"Content-Type": "text/plain"})
        assert form.status == 415
        assert (await client.get("/api/rollout")).status == 405

    async def open_to_all(client: Any) -> None:
        assert (await client.get("/api/runs", headers={"Host": "cluster-head:6010"})).status == 200

    look(tmp_path, session)
    look(tmp_path, open_to_all, host="0.0.0.0")


PLAYER = """
import json, sys, time
print("noise of an environment")
print(json.dumps({"kind": "start", "arguments": sys.argv[1:]}), flush=True)
if "9" in sys.argv: print("amago-ray: the policy is gone", file=sys.stderr); sys.exit(2)
if "8" in sys.argv: time.sleep(600)
print(json.dumps({"kind": "end"}))
"""


@pytest.mark.processes
def test_a_rollout_is_passed_on_as_it_is_played(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)

    async def play(client: Any, **options: Any) -> list[dict[str, Any]]:
        answer = await client.post("/api/rollout", json={"run": "run", **options})
        assert answer.status == 200, await answer.text()
        return [json.loads(line) async for line in answer.content]

    async def session(client: Any) -> None:
        start, end = await play(client, seed=3, epoch=4, temperature=0.5, max_steps=7)
        options = "--seed 3 --max-steps 7 --epoch 4 --temperature 0.5"
        assert start["arguments"] == [str(run.root), *options.split()] and end == {"kind": "end"}
        assert (await play(client, greedy=True))[0]["arguments"][-1] == "--greedy"
        assert (await play(client, seed=9))[-1] == {"kind": "error", "text": "amago-ray: the policy is gone"}
        for wrong in (
            {"seed": "3; rm"},
            {"epoch": -1},
            {"temperature": 0},
            {"temperature": 1e7},
            {"max_steps": 10**9},
            {"seed": True},
        ):
            answer = await client.post("/api/rollout", json={"run": "run", **wrong})
            assert answer.status == 400 and next(iter(wrong)) in (await answer.json())["error"]
        assert (await client.post("/api/rollout", json={"run": "../run"})).status == 404
        assert (await client.post("/api/rollout", json=["run"])).status == 400
        before = psutil.Process().children()  # other tests share a Ray with this one
        leaving = await client.post("/api/rollout", json={"run": "run", "seed": 8})
        await leaving.content.readline()
        (player,) = (child for child in psutil.Process().children() if child not in before)
        leaving.close()
        for _ in range(200):
            if not player.is_running():
                break
            await asyncio.sleep(0.05)
        assert not player.is_running(), "nobody looks any more"

    look(tmp_path, session, inspect=(sys.executable, "-c", PLAYER))
