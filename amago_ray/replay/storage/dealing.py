"""Dealing what is stored out over another number of shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from amago_ray.atomic_files import write_atomically
from amago_ray.messages import Trajectory
from amago_ray.replay.storage.config import Mark, StoreConfig
from amago_ray.replay.storage.folders import shard_folder, shard_folders
from amago_ray.replay.storage.store import TrajectoryStore
from amago_ray.replay.storage.trajectory_pack import pack

UNFINISHED, FINISHED, MARKS = ".dealing", "dealt", "dealt.json"
MESSAGE_BYTES = 16 << 20
COUNTED = ("inserted", "repeated", "sampled", "evicted")
WITHOUT_LIMIT = 1 << 60  # the shards evict what is too much themselves


def deal_anew(
    folder: Path,
    num_shards: int,
    marks: Mapping[str, Any],
    config: StoreConfig,
    advance: Callable[[int], None] = lambda num: None,
    tell: Callable[[str], None] = lambda damage: None,
) -> dict[str, Any]:
    """Take all shards in `folder` back to their marks and deal their trajectories out over `num_shards`.

    Every trajectory goes to the shard that its name says, with the commit that showed it; what is staged stays so, and
    what was evicted is known by name.
    What does not match its checksum is left out: it would get a new one, and pass for whole.
    Priorities begin anew. As much again of the disk is needed meanwhile. Killed at any moment, it can be done again:
    the old shards are there until all new ones are whole.

    marks: of `ReplayShard.mark`, by number. config: what of it is not the shard's own. advance: told of trajectories
    that are done. tell: in words, of what is damaged. Returns the marks of the new shards. Raises StorageError.
    """
    dealing = folder / UNFINISHED
    shutil.rmtree(dealing, ignore_errors=True)
    sources = [_Source(shard_folder(folder, int(shard)), mark) for shard, mark in sorted(marks.items())]
    for source in sources:
        for damage in source.store.damage:
            tell(damage)
    config = replace(config, capacity_bytes=WITHOUT_LIMIT, capacity_trajectories=WITHOUT_LIMIT, stride=num_shards)
    targets = [_Target(replace(config, folder=shard_folder(dealing, i))) for i in range(num_shards)]
    newest = max(source.commits for source in sources)
    _carry_over(sources, targets)
    for commit in sorted({int(number) for source in sources for number in np.unique(source.rows["commit"])}):
        for source in sources:
            for t in source.of_commit(commit):
                targets[(t.id.worker + t.id.sequence) % num_shards].add(t)
                advance(1)
        for target in targets:
            target.flush()
            if commit <= newest:
                target.store.commit(commit)
    made = {}
    for i, target in enumerate(targets):
        counted = {name: sum(mark[name] for mark in marks.values()) if i == 0 else 0 for name in COUNTED}
        made[str(i)] = vars(target.store.mark()) | counted
    for store in (*(source.store for source in sources), *(target.store for target in targets)):
        store.close()
    return made


class _Source:
    """An old shard's store as it was at its mark, to be read: what of it matches its checksums.

    numbers, rows: of its trajectories, oldest first, what was staged as its next commit would show it. commits: number
    of its newest one.
    """

    def __init__(self, folder: Path, mark: Mapping[str, Any]):
        place = Mark(**{field.name: mark[field.name] for field in fields(Mark)})
        TrajectoryStore.take_back(folder, place)
        self.store = TrajectoryStore(StoreConfig(folder, WITHOUT_LIMIT, WITHOUT_LIMIT), read_only=True)
        self.commits = self.store.commits
        self.store.show_staged()  # under the number of the commit that will
        every = np.arange(self.store.table.first, self.store.table.end)
        self.numbers = np.setdiff1d(every, self.store.damaged(every))
        self.rows = self.store.facts(self.numbers)

    def of_commit(self, commit: int) -> Iterator[Trajectory]:
        """The trajectories that a commit showed, oldest first."""
        first, last = np.searchsorted(self.rows["commit"], [commit, commit + 1])
        for number in self.numbers[first:last].tolist():
            yield self.store.trajectory(number)


class _Target:
    """A new shard's store, written in messages of some size."""

    def __init__(self, config: StoreConfig):
        self.store = TrajectoryStore(config)
        self._gathered: list[Trajectory] = []
        self._bytes = 0

    def add(self, trajectory: Trajectory) -> None:
        self._gathered.append(trajectory)
        self._bytes += trajectory.num_bytes
        if self._bytes > MESSAGE_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._gathered:
            self.store.push(pack(self._gathered))
            self._gathered, self._bytes = [], 0


def _carry_over(sources: Sequence[_Source], targets: Sequence[_Target]) -> None:
    """Tell the new shards what the old ones had stored and evicted, of workers of which something is dealt out.

    Otherwise each would wait for the trajectories before those that it gets, and remember all later ones one by one.
    """
    rows = np.concatenate([source.rows for source in sources])
    lives = np.stack([rows["worker"], rows["incarnation"]], axis=1).astype(np.int64)
    for life in np.unique(lives, axis=0):
        dealt = rows["sequence"][(lives == life).all(axis=1)]
        before = np.setdiff1d(np.arange(dealt.max()), dealt)
        ids = np.column_stack([np.tile(life, (len(before), 1)), before])
        ids = ids[np.any([source.store.knows(ids) for source in sources], axis=0)]
        for i, target in enumerate(targets):
            target.store.take_as_known(ids[(ids[:, 0] + ids[:, 2]) % len(targets) == i])


def put_in_place(folder: Path, epoch: int, marks: Mapping[str, Any]) -> None:
    """Let what `deal_anew` has made, for a run that was saved after `epoch`, take the place of the old shards."""
    dealing = folder / UNFINISHED
    written = json.dumps({"epoch": epoch, "marks": dict(marks)})
    write_atomically(dealing / MARKS, lambda path: path.write_text(written))
    dealing.rename(folder / FINISHED)
    finish(folder)


def finish(folder: Path) -> None:
    """Bring to an end what a process that was killed in `put_in_place` had begun; else does nothing."""
    dealt = folder / FINISHED
    if not dealt.is_dir():
        return
    if not (dealt / MARKS).exists():  # all but this is done
        dealt.rmdir()
        return
    num_shards = len(json.loads((dealt / MARKS).read_text())["marks"])
    for shard in shard_folders(dealt):
        shutil.rmtree(folder / shard.name, ignore_errors=True)
        shard.rename(folder / shard.name)
    for old in shard_folders(folder)[num_shards:]:
        shutil.rmtree(old)
    (dealt / MARKS).rename(folder / MARKS)
    dealt.rmdir()


def marks_since(folder: Path, epoch: int, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The marks of a run that was saved after `epoch`: those that were `saved`, or those since it was dealt anew."""
    path = folder / MARKS
    dealt = json.loads(path.read_text()) if path.is_file() else {}
    return dealt["marks"] if dealt.get("epoch") == epoch else dict(saved)
