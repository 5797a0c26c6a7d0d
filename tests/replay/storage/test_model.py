"""A shard does what a list and a set would, whatever is pushed, evicted, killed and opened again in between."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ring_cases import (
    ROW_BYTES,
    assert_same_trajectories,
    make_shards,
    sample,
    stored_ids,
    stored_trajectories,
    trajectory,
)

from amago_ray.messages import Trajectory
from amago_ray.replay.storage import records
from amago_ray.replay.storage.records import Schema
from amago_ray.replay.storage.segments import segment_numbers, segment_path
from amago_ray.replay.storage.trajectory_pack import pack

Id = tuple[int, int, int]
IDS = st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 30))


def made(id: Id) -> Trajectory:
    """The trajectory of this identity: its length and facts follow from it."""
    worker, incarnation, sequence = id
    facts = {"env_name": f"env {sequence % 3}", "weight_version": 7 * sequence, "truncated": sequence % 2 == 0}
    return trajectory(sequence, 1 + (5 * sequence + worker) % 9, worker, incarnation, **facts)


class Model:
    """What a shard should hold."""

    def __init__(self, capacity_bytes: int, capacity_trajectories: int):
        self.capacity_bytes, self.capacity_trajectories = capacity_bytes, capacity_trajectories
        self.seen: set[Id] = set()
        self.staged: list[Id] = []
        self.visible: list[Id] = []
        self.priorities: dict[Id, float] = {}
        self.largest = 1.0

    @property
    def num_bytes(self) -> int:
        return sum(made(id).num_bytes for id in self.visible)

    def push(self, ids: list[Id]) -> int:
        new = sorted(set(ids) - self.seen)
        self.seen |= set(new)
        self.staged += new
        return len(new)

    def commit(self) -> None:
        self.priorities |= dict.fromkeys(self.staged, self.largest)
        self.visible += sorted(self.staged)
        self.staged = []
        while len(self.visible) > self.capacity_trajectories or self.num_bytes > self.capacity_bytes:
            self.visible.pop(0)


class ShardMachine(RuleBasedStateMachine):
    """Subclasses say what kind of store it is."""

    durable = True
    compressed: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.made_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.last: list[Id] = []

    @initialize(
        capacity=st.sampled_from([(1 << 30, 6), (30 * ROW_BYTES, 1 << 30), (60 * ROW_BYTES, 10), (1 << 30, 1 << 30)]),
        segment_bytes=st.sampled_from([1, 1200, 1 << 20]),
    )
    def begin(self, capacity: tuple[int, int], segment_bytes: int) -> None:
        capacity_bytes, capacity_trajectories = capacity
        if self.compressed:  # how many bytes these are is not the model's business
            capacity_bytes = 1 << 30
        self.model = Model(capacity_bytes, capacity_trajectories)
        self.settings: dict[str, Any] = {
            "folder": Path(self.made_folder.name) if self.durable else None,
            "capacity_bytes": capacity_bytes,
            "capacity_trajectories": capacity_trajectories,
            "compressed": self.compressed,
            "segment_bytes": segment_bytes,
            "mode": "prioritized",
        }
        self.open()

    def open(self) -> None:
        self.shard = make_shards(1, **self.settings)[0]

    @rule(ids=st.lists(IDS, min_size=1, max_size=6))
    def push(self, ids: list[Id]) -> None:
        assert self.shard.push(pack([made(id) for id in ids])) == self.model.push(ids)
        self.last = ids

    @precondition(lambda self: self.last)
    @rule()
    def push_again(self) -> None:
        assert self.shard.push(pack([made(id) for id in self.last])) == self.model.push(self.last) == 0

    @rule()
    def commit(self) -> None:
        self.shard.commit()
        self.model.commit()

    @precondition(lambda self: self.model.visible)
    @rule(num=st.integers(1, 8), draw=st.integers(0, 99))
    def sample(self, num: int, draw: int) -> None:
        drawn = sample(self.shard, num, (draw,))
        weights = {id: float(np.float32(self.model.priorities[id])) ** 0.6 for id in self.model.visible}
        for i, stop in enumerate(drawn.stops.tolist()):
            worker, incarnation, sequence = drawn.ids[i].tolist()
            id = (worker, incarnation, sequence)
            assert self.model.visible[drawn.number[i] - self.shard.store.table.first] == id
            np.testing.assert_allclose(drawn.probability[i], weights[id] / sum(weights.values()), rtol=1e-9)
            expected, start, length = made(id), drawn.first_time_idx[i], drawn.lengths[i]
            for name, column in drawn.columns.items():
                wanted = expected.columns[name][start : start + length + 1]
                np.testing.assert_array_equal(column[stop - length - 1 : stop], wanted)

    @precondition(lambda self: self.model.visible)
    @rule(data=st.data(), value=st.floats(0.0625, 100, width=32))
    def set_priorities(self, data: st.DataObject, value: float) -> None:
        chosen = data.draw(st.lists(st.integers(0, len(self.model.visible) - 1), min_size=1, max_size=4))
        values = np.array([value + i for i in range(len(chosen))], dtype=np.float32)
        numbers = np.array([*chosen, -3]) + self.shard.store.table.first  # one that is evicted, or never was
        self.model.largest = max(self.model.largest, float(values.max()))
        self.shard.update_priorities(self.shard.report().life, numbers, np.append(values, 1), self.model.largest)
        self.shard.update_priorities(self.shard.report().life - 1, numbers, np.append(values, 1) + 9, 1.0)  # too late
        self.model.priorities |= {self.model.visible[i]: v for i, v in zip(chosen, values.tolist(), strict=True)}

    @rule(torn=st.integers(0, 300), commit=st.booleans())
    def kill_and_restart(self, torn: int, commit: bool) -> None:
        """torn: bytes of an unfinished write at the end of the log. Closing writes nothing, so it is like a kill."""
        assume(self.durable)
        self.shard.close()
        folder = Path(self.made_folder.name) / "shard_0"
        numbers, tail = segment_numbers(folder), b""
        if numbers and torn:
            record = records.encode_commit(99, 99, 0.0)
            if not commit:
                packed = pack([made((5, 5, 5))])
                record = b"".join(bytes(x) for x in records.encode(packed, Schema.of(packed.columns), 0.0)[0])
            tail = record[: min(torn, len(record) - 1)]
            with open(segment_path(folder, numbers[-1]), "ab") as file:
                file.write(tail)
        self.open()
        assert len(self.shard.store.damage) == bool(tail)
        assert all(f"the last {len(tail)} bytes were cut off" in damage for damage in self.shard.store.damage)
        assert self.shard.report().restored == len(self.model.visible) + len(self.model.staged)

    @rule()
    def read_all(self) -> None:
        assert_same_trajectories(stored_trajectories(self.shard), [made(id) for id in self.model.visible])
        assert [t.env_name for t in stored_trajectories(self.shard)] == [made(id).env_name for id in self.model.visible]

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "model"):
            return
        store, model = self.shard.store, self.model
        assert stored_ids([self.shard]) == model.visible
        assert store.num_staged == len(model.staged)
        assert store.num_transitions == sum(made(id).num_transitions for id in model.visible)
        if not self.compressed:
            assert store.num_bytes == model.num_bytes
        expected = np.array([model.priorities[id] for id in model.visible], dtype=np.float32)
        numbers = np.arange(store.table.first, store.table.end)
        np.testing.assert_array_equal(self.shard.selection.priorities(numbers), expected)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.read_all()
            self.shard.close()
        self.made_folder.cleanup()


class InMemory(ShardMachine):
    durable = False


class Compressed(ShardMachine):
    compressed = ("pixels",)


@pytest.mark.parametrize(("machine", "examples"), [(ShardMachine, 50), (InMemory, 50), (Compressed, 15)])
def test_a_shard_does_what_the_model_does(machine: type[ShardMachine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            phases=(Phase.generate,),
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
