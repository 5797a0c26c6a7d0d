"""Padded training batches say what the stored rows say, and are prepared ahead of the consumer."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from ring_cases import Recorded, as_batch, counting, sample

from amago_ray.envs.exploration import EpsilonGreedy
from amago_ray.learner.batches import Prefetcher, pad, training_batch
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.learner.precision import MixedPrecision
from amago_ray.messages import Batch
from amago_ray.nets.actions import action_vector
from amago_ray.nets.sizes import rows_of
from amago_ray.replay.shard import ReplayConfig, ReplayShard
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.specs import ActionKind

CPU = torch.device("cpu")
KINDS = get_args(ActionKind)


def sampled(kind: ActionKind, terminate: bool = True, num: int = 40) -> tuple[Batch, Recorded]:
    """A batch of Counting sequences of 1..6 transitions, some from rollouts' starts and some from their ends."""
    make = counting(9, terminate, action=kind, random_lengths=True)
    run = Recorded(make, exploration_type=EpsilonGreedy, num_envs=3)
    run.worker.collect(300)
    shard = ReplayShard(ReplayConfig(4, "both"), 0)
    shard.push(pack(run.written))
    shard.commit()
    return as_batch(sample(shard, num)), run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("terminate", [True, False])
def test_a_batch_says_what_its_rows_say(kind: ActionKind, terminate: bool) -> None:
    batch, run = sampled(kind, terminate)
    spec = run.agent.action_spec
    t = training_batch(batch, spec, CPU)
    B, L, A = batch.num_sequences, int(batch.lengths.max()), spec.vector_size
    assert t.rl2.shape == (B, L + 1, 1 + A) and t.actions.shape == (B, L, A)
    assert t.rewards.shape == t.terminated.shape == t.mask.shape == (B, L) and t.time_idx.shape == (B, L + 1)
    assert all(value.shape[:2] == (B, L + 1) for value in t.obs.values())
    assert (batch.lengths < L).any() and (batch.first_time_idx == 0).any() and (batch.first_time_idx > 0).any()
    np.testing.assert_array_equal(t.mask.sum(dim=1).numpy(), batch.lengths)
    np.testing.assert_array_equal(t.timestep_mask.sum(dim=1).numpy(), batch.lengths + 1)
    stop = 0
    columns = {name: np.concatenate(batch.rows(name)) for name in batch.column_names}
    for i, n in enumerate(batch.lengths.tolist()):
        rows = slice(stop, stop := stop + n + 1)
        column = {name: torch.from_numpy(value[rows]) for name, value in columns.items()}
        for name, value in t.obs.items():
            assert torch.equal(value[i, : n + 1], column[f"obs.{name}"])
            assert not value[i, n + 1 :].any()
        assert t.mask[i, :n].all() and not t.mask[i, n:].any()
        assert torch.equal(t.time_idx[i, : n + 1], column["obs.step"].flatten())
        assert torch.equal(t.rewards[i, :n], column["reward"][1:])
        assert torch.equal(t.terminated[i, :n], column["terminated"][1:].float())
        taken = action_vector(column["action"], spec)
        assert torch.equal(t.actions[i, :n], taken[1:])
        assert torch.equal(t.rl2[i, : n + 1, 0], column["reward"])
        begun = slice(int(batch.first_time_idx[i] == 0), n + 1)  # all rows but a rollout's first
        assert torch.equal(t.rl2[i, begun, 1:], taken[begun])
        assert torch.equal(t.rl2[i, 1 : n + 1, 1:], t.actions[i, :n])
        if batch.first_time_idx[i] == 0:
            assert not t.rl2[i, 0].any()
    assert stop == len(columns["reward"])
    assert bool(t.terminated.any()) == terminate


def test_rows_are_filled_up_to_few_numbers() -> None:
    """Of batches of any length together: what is kept of each is code, and there is room for so many."""
    sizes = set()
    for length in (12, 45, 90):
        for num_real in range(1, 24 * length + 1):
            real = np.zeros(24 * length, bool)
            real[np.random.default_rng(num_real).permutation(real.size)[:num_real]] = True
            rows, filled = rows_of(real.reshape(24, length), few_sizes=True)
            np.testing.assert_array_equal(rows[: len(rows) - filled], np.flatnonzero(real))
            assert real[rows].all() and len(rows) - filled == num_real and filled < num_real / 16
            sizes.add(len(rows))
    whole = {24 * 12, 24 * 45, 24 * 90}
    assert whole <= sizes and len([n for n in sizes - whole if n > 1024]) == 16


@pytest.mark.parametrize(("precision", "few"), [("no", False), ("bf16", True)])
def test_a_learner_in_bfloat16_sees_few_sizes(precision: MixedPrecision, few: bool) -> None:
    """On a processor, where code is written for each of them; in float32 there is nothing but what is real."""
    batch, run = sampled("discrete")
    AcceleratorState._reset_state(reset_partial_state=True)
    learner = Learner(LearnerConfig(mixed_precision=precision), dataclasses.replace(run.agent, max_seq_len=100), None)
    prepared = learner.prepare(batch)
    real = int(batch.lengths.sum())
    assert prepared.num_real == prepared.mask.sum() == real
    assert bool(prepared.filled) == few and (prepared.mask.shape[1] == 13) == few
    agent = learner.agent.eval()
    exact = dataclasses.replace(prepared, real_rows=None, filled=0)
    logged, expected = (agent(x, log=True).metrics for x in (prepared, exact))
    drawn = ("TD Target", "Loss")  # the critics of a target are: of another number of rows, others
    names = [name for name in expected if not any(part in name for part in drawn)]
    assert logged.keys() == expected.keys() and len(names) >= 3 * len(agent.gamma_names)
    for name in names:
        torch.testing.assert_close(logged[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes(kind: ActionKind) -> None:
    batch, run = sampled(kind)
    t = training_batch(batch, run.agent.action_spec, CPU)
    for name, value in t.obs.items():
        assert value.numpy().dtype == batch.rows(f"obs.{name}")[0].dtype == run.agent.obs_spec[name].dtype
    for value in (t.rl2, t.actions, t.rewards, t.terminated):
        assert value.dtype == torch.float32
    assert t.time_idx.dtype == torch.int64 and t.mask.dtype == torch.bool


def test_categories_become_one_hots() -> None:
    for kind, ones in (("discrete", 1), ("multidiscrete", 3)):
        batch, run = sampled(kind)
        t = training_batch(batch, run.agent.action_spec, CPU)
        assert set(t.actions.unique().tolist()) == {0.0, 1.0}
        assert (t.actions.sum(dim=-1)[t.mask] == ones).all()
        assert (t.rl2[..., 1:].sum(dim=-1)[t.timestep_mask & (t.time_idx > 0)] == ones).all()
        assert not t.rl2[t.time_idx == 0].any()


def test_padding_comes_after_the_rows_and_is_zero() -> None:
    rows = np.split(np.arange(12, dtype=np.uint8).reshape(6, 2), [2, 5])
    padded = pad(rows, 3)
    assert padded.dtype == torch.uint8 and padded[..., 0].tolist() == [[0, 2, 0], [4, 6, 8], [10, 0, 0]]


def test_a_batch_goes_through_the_agent() -> None:
    batch, run = sampled("discrete", num=8)
    loss = run.agent.build()(training_batch(batch, run.agent.action_spec, CPU), log=True)
    loss.loss.backward()
    assert torch.isfinite(loss.loss)


# Prefetching


def numbers(upto: int, error: Exception | None = None) -> Iterator[int]:
    yield from range(upto)
    if error is not None:
        raise error


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert prefetch_threads() == 0


@pytest.mark.parametrize("ahead", [1, 2, 50])
def test_items_arrive_in_order_and_prepared(ahead: int) -> None:
    with Prefetcher(numbers(20), lambda n: n * n, ahead) as prefetched:
        assert list(prefetched) == [(n, n * n) for n in range(20)]
    assert prefetched.wait_s >= 0


def test_an_empty_source_ends_at_once() -> None:
    with Prefetcher(numbers(0), str) as prefetched:
        assert list(prefetched) == []


def test_an_error_of_the_source_reaches_the_consumer_after_what_came_before() -> None:
    seen = []
    with pytest.raises(KeyError, match="no more"), Prefetcher(numbers(3, KeyError("no more")), str) as prefetched:
        for item, _ in prefetched:
            seen.append(item)
    assert seen == [0, 1, 2]


def test_an_error_in_preparing_reaches_the_consumer() -> None:
    with pytest.raises(ZeroDivisionError), Prefetcher(numbers(9), lambda n: 1 / (n - 2)) as prefetched:
        list(prefetched)


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_a_consumer_that_stops_early_leaves_no_thread(taken: int) -> None:
    made = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    with Prefetcher(endless(), str, ahead=2) as prefetched:
        for _, item in zip(range(taken), prefetched):
            assert item[0] in made
        assert prefetch_threads() == 1
    assert prefetch_threads() == 0
    assert len(made) < taken + 20  # it did not run on
    made_at_exit = len(made)
    assert len(made) == made_at_exit


def test_a_consumer_that_fails_leaves_no_thread() -> None:
    with pytest.raises(ValueError, match="mine"), Prefetcher(numbers(1000), str) as prefetched:
        for item, _ in prefetched:
            if item == 3:
                raise ValueError("mine")


def test_the_thread_computes_alone_and_the_consumer_as_before() -> None:
    """Its own team of threads would put the consumer's to sleep; what a thread begins with is the last that was set."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[int] = []
    try:
        with Prefetcher(numbers(2), lambda _: torch.get_num_threads()) as prefetched:
            assert [threads for _, threads in prefetched] == [1, 1]
            assert torch.get_num_threads() == 3
            another = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            another.start()
            another.join()
        assert torch.get_num_threads() == 3 and seen == [3]
    finally:
        torch.set_num_threads(before)


def test_no_more_is_prepared_ahead_than_asked_for() -> None:
    full = threading.Event()
    prepared: list[int] = []

    def prepare(n: int) -> int:
        prepared.append(n)
        if len(prepared) == 4:  # 1 taken, 2 in the queue, 1 waiting for a place
            full.set()
        return n

    with Prefetcher(numbers(1000), prepare, ahead=2) as prefetched:
        next(iter(prefetched))
        assert full.wait(timeout=30)
        assert len(prepared) <= 4
