"""What shards report is told once, and told again when it happens again."""

from __future__ import annotations

from typing import Any

from amago_ray.driver.shard_news import ShardNews
from amago_ray.messages import ReplayReport


def report(life: int = 1, **news: Any) -> ReplayReport:
    return ReplayReport(0, life, 1, 1, 0, 0, 0, 0, 0, restored=1, **news)


def told(*reports: ReplayReport) -> list[str]:
    said: list[str] = []
    news = ShardNews(said.append)
    for one in reports:
        news.tell([one])
    return said


def test_damage_is_told_once_whichever_life_of_the_shard_has_found_it() -> None:
    torn, other = ("a is torn",), ("b is torn",)
    said = told(report(damage=torn), report(damage=torn), report(2, damage=other), report(2, damage=(*other, "c is")))
    assert said == [
        "replay shard 0: a is torn",
        "replay shard 0 died and Ray restarted it: it has its 1 trajectories",
        "replay shard 0: b is torn",
        "replay shard 0: c is",
    ]


def test_a_full_disk_is_told_once_as_long_as_it_lasts() -> None:
    full = report(full="cannot write to s: No space left on device")
    said = told(report(), full, full, report(), report(), full)
    why = "replay shard 0 shows what it has stored when there is room: cannot write to s: No space left on device"
    assert said == [why, "replay shard 0 has room again", why]


def test_that_shards_live_is_no_news() -> None:
    said: list[str] = []
    news = ShardNews(said.append)
    news.expect([report(7)])
    news.tell([report(7)])
    assert said == []
