"""The board in a real browser while a run goes on, some minutes long: `make test-browser`. It needs Chromium.

Pictures of every page are left in the folder that pytest names for the test.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import TESTS
from PIL import Image
from system.chromium import Chromium
from watch.test_run_status import make_run

from amago_ray.watch.metrics import AVERAGE_RETURN, MetricsLog, Progress

MINUTES = 60.0
EPOCHS = 6
BINDINGS = (
    f"Experiment.epochs = {EPOCHS}",
    "Experiment.run_name = 'lake'",
    "Experiment.val_interval = 2",
    "Experiment.callbacks = [@ValidationVideo]",
    "Experiment.verbose = False",
)
TABS = {
    "time": "document.querySelectorAll('#panel .js-plotly-plot').length === 2",
    "processes": "document.body.innerText.includes('the run begins with')",
    "replay": "document.querySelectorAll('#panel .js-plotly-plot').length >= 3",
    "settings": "document.querySelectorAll('#panel tbody tr').length > 100",
    "media": "document.querySelector('#panel img')?.naturalWidth > 0",
}
CARDS = "[...document.querySelectorAll('article.card')]"
RETURN_CHART = f"{CARDS}.find((card) => card.querySelector('h3').textContent === 'Return')"


def points(trace: int = 0) -> str:
    """How many points a line of the first chart has."""
    return f"{RETURN_CHART}.querySelector('.chart').data[{trace}].x.length"


@contextmanager
def board(folder: Path) -> Iterator[str]:
    """`amago-ray board` of a folder, and its address."""
    command = [sys.executable, "-m", "amago_ray.train", "board", str(folder), "--port", "0"]
    process = subprocess.Popen(command, cwd=TESTS.parent, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" is at ")[1].split()[0]
    finally:
        process.terminate()
        process.communicate()


def look(folder: Path, session: Callable[[Chromium, str], Awaitable[None]]) -> None:
    """A session of a browser, in which no page may complain or ask anybody but the board."""

    async def run(address: str) -> None:
        async with Chromium(folder / "profile") as browser:
            await session(browser, address)
        assert browser.complaints == []
        others = {asked for asked in browser.asked if not asked.startswith((address, "data:", "blob:", "about:"))}
        assert not others, "the board works where there is no internet"

    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    with board(runs) as address:
        asyncio.run(run(address))


def train(folder: Path) -> subprocess.Popen[str]:
    bindings = [*BINDINGS, f"Experiment.ckpt_base_dir = {str(folder)!r}"]
    options = [word for binding in bindings for word in ("--set", binding)]
    command = [sys.executable, "-m", "amago_ray.train", "--config", "configs/meta_frozen_lake.gin", *options]
    return subprocess.Popen(
        [*command, "--no-final-test"],
        cwd=TESTS.parent,
        env=os.environ | {"RAY_worker_niceness": "0"},  # Ray's 15 starves them where the browser leaves little
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_is_watched_from_before_it_begins_until_it_has_ended(tmp_path: Path) -> None:
    async def session(browser: Chromium, address: str) -> None:
        await browser.open(address)
        await browser.until("document.body.innerText.includes('There are no runs in this folder yet')")
        run = train(tmp_path / "runs")
        try:
            await browser.until("document.querySelector('[data-run=lake]') !== null", 5 * MINUTES)
            first = await browser.until(points(), 5 * MINUTES)
            assert run.poll() is None and first < EPOCHS, "it is seen while it trains"
            await browser.picture(tmp_path / "running.png")
            more = await browser.until(f"{points()} > {first} && {points()}", 5 * MINUTES)
            assert more > first, "the same page, without loading it again"
            await browser.until(f"{points()} === {EPOCHS}", 5 * MINUTES)
        finally:
            out, _ = run.communicate(timeout=5 * MINUTES)
        assert run.returncode == 0, out
        await browser.until("document.querySelector('.run .state').textContent === 'finished'")
        for tab, seen in TABS.items():
            await browser.click(f"[data-tab={tab}]")
            await browser.until(seen)
            await browser.picture(tmp_path / f"{tab}.png")
        await watch_a_rollout(browser, tmp_path)

    look(tmp_path, session)
    for picture in ("running", "time", "rollout"):
        with Image.open(tmp_path / f"{picture}.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20, "something is drawn"


async def watch_a_rollout(browser: Chromium, folder: Path) -> None:
    await browser.click("#inspect")
    await browser.until("document.querySelector('#stage img')?.naturalWidth > 0", 5 * MINUTES)
    await browser.until("!document.querySelector('#play').disabled", 5 * MINUTES)
    steps = await browser.evaluate("document.querySelector('#values').data[0].x.length")
    gammas = await browser.evaluate("document.querySelector('#values').data.map((line) => line.name)")
    assert steps > 4 and gammas == ["γ = 0.7", "γ = 0.9", "γ = 0.97", "what came"]
    shown = "document.querySelector('#facts').innerText"
    assert f"{steps} / {steps}" in await browser.evaluate(shown), "it was followed as it was played"
    await browser.click("#before")
    await browser.until(f"{shown}.includes('{steps - 1} / {steps}')")
    rows = await browser.evaluate("document.querySelectorAll('#actions .track').length")
    assert rows == 5 and await browser.evaluate("document.querySelectorAll('#actions .taken').length") == 1
    await browser.picture(folder / "rollout.png")
    await browser.evaluate("document.querySelector('#epoch').value = '0'")
    await browser.click("#play")
    await browser.until("document.querySelector('#play').disabled")
    await browser.until("!document.querySelector('#play').disabled", 5 * MINUTES)


HOSTILE = "<img src=x onerror=document.title='hacked'>"


def test_runs_that_are_resumed_removed_damaged_or_hostile(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = make_run(runs, 12, run_name=HOSTILE)
    make_run(tmp_path / "made", 4).root.rename(runs / HOSTILE)
    log = MetricsLog(run.root, resume=True)

    async def session(browser: Chromium, address: str) -> None:
        await browser.open(f"{address}#run=run")
        await browser.until(f"{points()} === 12")
        log.rewind(4)
        await browser.until(f"{points()} === 5")
        log.log("collect", {AVERAGE_RETURN: float("nan")}, Progress(5, 360, {"A": 6000}, 180.0))
        with open(run.root / "metrics.jsonl", "a") as file:
            file.write("broken\n" + json.dumps({"section": "collect"}) + '\n{"section": "col')
        await browser.until("document.querySelector('#glance').innerText.includes('2 lines unreadable')")
        await browser.click(".run:not(.on) .swatch")
        await browser.until("document.querySelectorAll('#glance tbody tr').length === 2")
        for tab in ("processes", "time", "replay", "media"):
            await browser.click(f"[data-tab={tab}]")
            await browser.until(f"document.querySelector('#panel')?.innerText.includes({json.dumps(HOSTILE)})")
        await browser.click("[data-tab=curves]")
        await browser.until(f"{RETURN_CHART}.querySelector('.chart').data.length === 4")
        assert await browser.evaluate("document.title") == "amago-ray board"
        await browser.click("#theme")
        await browser.until("document.documentElement.dataset.theme === 'dark'")
        await browser.picture(tmp_path / "dark.png")
        shutil.rmtree(runs / HOSTILE)
        await browser.until("document.querySelectorAll('.run').length === 1")
        await browser.until(f"{RETURN_CHART}.querySelector('.chart').data.length === 2")

    look(tmp_path, session)
    log.close()


def test_a_folder_with_many_runs(tmp_path: Path) -> None:
    source = make_run(tmp_path / "made", 20).root
    for i in range(200):
        shutil.copytree(source, tmp_path / "runs" / f"run_{i}")

    async def session(browser: Chromium, address: str) -> None:
        await browser.open(f"{address}#{'&'.join(f'run=run_{i}' for i in range(30))}")
        await browser.until("document.querySelectorAll('.run').length === 200")
        await browser.until(f"{RETURN_CHART}.querySelector('.chart').data.length === 60")
        await browser.picture(tmp_path / "many.png")

    look(tmp_path, session)
