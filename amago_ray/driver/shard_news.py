"""What happened to replay shards, told once each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from amago_ray.messages import ReplayReport


class ShardNews:
    """Reads the shards' reports, and says what is new in them to people.

    say: is told, in words.
    """

    def __init__(self, say: Callable[[str], None]):
        self._say = say
        self._lives: dict[int, int] = {}
        self._damage: dict[int, set[str]] = {}
        self._full: set[int] = set()

    def expect(self, reports: Sequence[ReplayReport]) -> None:
        """That they live is no news."""
        self._lives = {report.shard: report.life for report in reports}

    def tell(self, reports: Sequence[ReplayReport]) -> None:
        """Say what happened since the last call."""
        for report in reports:
            shard = report.shard
            if self._lives.setdefault(shard, report.life) != report.life:
                kept = f"it has its {report.restored:,} trajectories" if report.restored else "what it held is lost"
                self._say(f"replay shard {shard} died and Ray restarted it: {kept}")
                self._lives[shard] = report.life
            told = self._damage.setdefault(shard, set())
            for damage in report.damage:
                if damage not in told:
                    self._say(f"replay shard {shard}: {damage}")
                    told.add(damage)
            self._tell_of_room(shard, report.full)

    def _tell_of_room(self, shard: int, full: str) -> None:
        if full and shard not in self._full:
            self._say(f"replay shard {shard} shows what it has stored when there is room: {full}")
            self._full.add(shard)
        elif not full and shard in self._full:
            self._say(f"replay shard {shard} has room again")
            self._full.remove(shard)
