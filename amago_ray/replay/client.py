"""The two ends that talk to the shards: the worker's writer and the learner's reader."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from amago_ray.messages import Batch, SampledSequences, Trajectory
from amago_ray.pending import CallTimeout, Pending, ProcessDied, Ready, ShardAway
from amago_ray.replay.sampling.sources import Available, ReplayEmpty
from amago_ray.replay.shard import BUFFER, ReplayShard
from amago_ray.replay.storage.segments import StorageError
from amago_ray.replay.storage.trajectory_pack import PackedTrajectories, pack

RETRY_INTERVAL_S = 0.2
FULL_PATIENCE_S = 5.0  # a disk that is full stays so until somebody does something about it
MAX_KEPT_BYTES = 256 << 20  # of what a full disk refuses: what waits for it is in memory
REQUEST_BYTES = 16 << 20
IN_FLIGHT_BYTES = 512 << 20
BUCKETS = 8  # batches of one request whose sequences are sorted by length


class ShardHandle(Protocol):
    """A shard in another process; see `ReplayShard` for the methods."""

    def push(self, packed: PackedTrajectories) -> Pending[int]: ...

    def available(self) -> Pending[tuple[Available, ...]]: ...

    def sample(
        self, num_sequences: int, version: int, draw: tuple[int, ...], source: int
    ) -> Pending[SampledSequences | None]: ...

    def update_priorities(
        self, life: int, numbers: np.ndarray, priorities: np.ndarray, largest: float
    ) -> Pending[None]: ...


class LocalShard:
    """A shard in this process, behind the interface of one elsewhere."""

    def __init__(self, shard: ReplayShard):
        self.shard = shard

    def push(self, packed: PackedTrajectories) -> Pending[int]:
        return Ready(self.shard.push(packed))

    def available(self) -> Pending[tuple[Available, ...]]:
        return Ready(self.shard.available())

    def sample(
        self, num_sequences: int, version: int, draw: tuple[int, ...], source: int
    ) -> Pending[SampledSequences | None]:
        return Ready(self.shard.sample(num_sequences, version, draw, source))

    def update_priorities(
        self, life: int, numbers: np.ndarray, priorities: np.ndarray, largest: float
    ) -> Pending[None]:
        self.shard.update_priorities(life, numbers, priorities, largest)
        return Ready(None)


class ReplayWriter:
    """Sends finished trajectories to the shards; forgets one only when its shard has acknowledged it.

    message_bytes: trajectories are gathered up to this size before they are sent.
    max_in_flight: unacknowledged messages beyond which `write` waits (back-pressure).
    timeout_s: how long a dead shard may stay away before `flush` raises ShardAway; one whose disk is full is given
        FULL_PATIENCE_S. Nothing is forgotten then: `write` goes on gathering without waiting, and each `flush` tries
        again. Raises StorageError for other faults of the disk, and where more than MAX_KEPT_BYTES wait for room.
    """

    def __init__(
        self,
        shards: Sequence[ShardHandle],
        message_bytes: int = 1 << 20,
        max_in_flight: int = 2,
        timeout_s: float = 120.0,
    ):
        self._shards = shards
        self._message_bytes = message_bytes
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._gathered: list[list[Trajectory]] = [[] for _ in shards]
        self._gathered_bytes = [0] * len(shards)
        self._in_flight: deque[tuple[int, PackedTrajectories, Pending[int]]] = deque()
        self._away_since: float | None = None
        self.wait_s = 0.0

    def write(self, trajectory: Trajectory) -> None:
        """Take one finished trajectory. Its worker and number choose the shard, so that shards fill evenly."""
        shard = (trajectory.id.worker + trajectory.id.sequence) % len(self._shards)
        self._gathered[shard].append(trajectory)
        self._gathered_bytes[shard] += trajectory.num_bytes
        if self._gathered_bytes[shard] >= self._message_bytes:
            with contextlib.suppress(ShardAway):  # this may be in the middle of a step: `flush` tells
                self._send(shard)

    def flush(self) -> None:
        """Send what is gathered and wait until everything is acknowledged. Raises ShardAway."""
        for shard, gathered in enumerate(self._gathered):
            if gathered:
                self._send(shard)
        while self._in_flight:
            self._await_oldest()

    def _send(self, shard: int) -> None:
        while len(self._in_flight) >= self._max_in_flight:
            self._await_oldest()
        packed = pack(self._gathered[shard])
        self._gathered[shard], self._gathered_bytes[shard] = [], 0
        self._in_flight.append((shard, packed, self._shards[shard].push(packed)))

    def _await_oldest(self) -> None:
        started = time.monotonic()
        shard, packed, pending = self._in_flight[0]
        while True:
            try:
                pending.result(self._timeout_s if self._away_since is None else RETRY_INTERVAL_S)
                break
            except CallTimeout as silent:
                # It may be at work still: the message stays in flight, and the next flush looks for its answer again.
                self._away_since = self._away_since or time.monotonic()
                raise ShardAway(str(silent)) from silent
            except (ProcessDied, StorageError) as error:
                full = error.strerror if isinstance(error, StorageError) else ""
                if isinstance(error, StorageError) and (not error.is_full or self._kept_bytes > MAX_KEPT_BYTES):
                    raise
                now = time.monotonic()
                since = self._away_since = self._away_since or now
                is_over = now - since > (FULL_PATIENCE_S if full else self._timeout_s)
                if not is_over:
                    time.sleep(RETRY_INTERVAL_S)  # a restarting shard refuses calls; there is nothing to wait on
                pending = self._shards[shard].push(packed)
                self._in_flight[0] = shard, packed, pending
                if is_over:
                    away = f"replay shard {shard} has been away for {now - since:.0f} s ({error})"
                    raise ShardAway(full or away) from error
        self._away_since = None
        self._in_flight.popleft()
        self.wait_s += time.monotonic() - started

    @property
    def _kept_bytes(self) -> int:
        """Of what is gathered and not sent."""
        return sum(self._gathered_bytes)


def request_size(batch_bytes: int, least_batches: int = 1) -> tuple[int, int]:
    """(batches per request, requests in flight) that spare calls where batches are small and memory where not.

    batch_bytes: the most that one batch can hold.
    """
    batches = max(min(max(REQUEST_BYTES // batch_bytes, 1), 4), least_batches)
    return batches, min(max(IN_FLIGHT_BYTES // (batches * batch_bytes), 1), 3)


@dataclass(frozen=True)
class Survey:
    """What the shards could sample at one moment.

    shards: per shard one `Available` per source; none for a shard that is down.
    """

    shards: tuple[tuple[Available, ...], ...]

    @property
    def complete(self) -> bool:
        return all(self.shards)

    @property
    def num_sources(self) -> int:
        return max(len(sources) for sources in self.shards)

    def totals(self, source: int) -> np.ndarray:
        """(shards,) float64: the weight of a source on each shard."""
        return np.array([sources[source].total if sources else 0.0 for sources in self.shards])

    def heard(self, request: Request, parts: Sequence[SampledSequences]) -> Survey:
        """With the weights that the shards had when they answered, where they still hold what they held then.

        Priorities change them from one request to the next.
        """
        shards = [list(sources) for sources in self.shards]
        for part in parts:
            shard, source = int(part.shard[0]), part.source
            then, now = request.survey.shards[shard][source], self.shards[shard]
            if now and now[source].version == then.version:
                shards[shard][source] = replace(then, total=part.total)
        return Survey(tuple(map(tuple, shards)))

    def trajectories(self, source: int) -> int:
        """Trajectories of a source, on all shards."""
        return sum(sources[source].trajectories for sources in self.shards if sources)

    def mixture(self, weights: Sequence[float] | None) -> np.ndarray:
        """(sources,) float64 that add up to 1: `weights`, without the sources that have nothing yet.

        weights: of each source; None for the buffer alone. All zeros where there is nothing to sample.
        """
        wanted = np.zeros(self.num_sources)
        wanted[: 1 if weights is None else len(weights)] = 1.0 if weights is None else weights
        wanted *= [self.totals(source).sum() > 0 for source in range(self.num_sources)]
        return wanted / wanted.sum() if wanted.any() else wanted


@dataclass
class Request:
    """`num_batches` batches, of which the first is number `first` of the run, on their way.

    mixture: (sources,) float64, probability of each source. parts: one per shard and source that was asked: (its share
    of its source's draws, the source, the answer).
    """

    first: int
    num_batches: int
    survey: Survey
    mixture: np.ndarray
    parts: list[tuple[float, int, Pending[SampledSequences | None]]]


def _what_is_empty(mixture: Sequence[float] | None) -> str:
    """What to say where nothing can be drawn from the sources that have a weight in `mixture` (see `Survey`)."""
    if mixture is None or not any(mixture[1:]):
        return "the replay buffer is empty: no rollout has finished yet"
    nothing = "Experiment.dataset holds nothing that can be drawn"
    return f"{nothing}, and no rollout has finished yet" if mixture[0] else nothing


class ReplayReader:
    """Samples batches over all shards with exactly the distribution of one big buffer.

    Each request first draws how many of its sequences come from which source and shard (multinomial in the weights of
    what they hold), asks all at once and shuffles what comes back. When what a shard holds has changed meanwhile, or a
    shard died, the whole request is drawn again. A few requests are kept in flight; weights that change meanwhile, as
    priorities do, share out the requests that follow the answers which tell of them.

    batches_per_request: batches drawn together, to spare calls. max_in_flight: requests ahead of the consumer.
    importance_exponent: beta of importance sampling (arXiv 1511.05952, section 3.4), where trajectories are drawn by
        priority, and 0 makes all weights 1; None where they are not, and batches then have no weights.
    bucketed: deal a request's sequences out to its batches by length, so that padding is short; the batches come in
        random order. Each sequence is as likely as without, but the lengths in one batch are alike.
    """

    def __init__(
        self,
        shards: Sequence[ShardHandle],
        batch_size: int,
        seed: int,
        rank: int = 0,
        batches_per_request: int = 4,
        max_in_flight: int = 3,
        importance_exponent: float | None = None,
        bucketed: bool = False,
        timeout_s: float = 120.0,
    ):
        self._shards = shards
        self._batch_size = batch_size
        self._seed = (seed, rank)
        self._batches_per_request = batches_per_request
        self._max_in_flight = max_in_flight
        self._importance_exponent = importance_exponent
        self._bucketed = bucketed
        self._timeout_s = timeout_s
        self._largest_priority = 0.0
        self._told: list[Pending[None]] = []

    def batches(self, num: int, first: int, mixture: Sequence[float] | None = None) -> Iterator[Batch]:
        """`num` batches, of which the first is number `first` of the run.

        Requests of `batches_per_request` start at `first`; a batch depends on the number and size of its request and
        on the shards' contents alone. Calls that cut a run at multiples of `batches_per_request` thus give the same
        batches as one call.
        mixture: weight of each source (the buffer, then the datasets); None for the buffer alone. A source that has
        nothing yet is left out.
        Raises ReplayEmpty when there is nothing to sample anywhere.
        """
        survey = self._survey(mixture)
        waiting: deque[Request] = deque()
        asked = 0
        while asked < num or waiting:
            while asked < num and len(waiting) < self._max_in_flight:
                if not survey.complete:
                    survey = self._survey(mixture)  # a shard may be back
                count = min(self._batches_per_request, num - asked)
                waiting.append(self._ask(first + asked, count, survey, mixture, attempt=0))
                asked += count
            request = waiting.popleft()
            attempt = 0
            while (parts := self._collect(request)) is None:
                attempt += 1
                survey = self._survey(mixture)
                request = self._ask(request.first, request.num_batches, survey, mixture, attempt)
            survey = survey.heard(request, parts)
            yield from self._assemble(request, parts, attempt)

    def _survey(self, mixture: Sequence[float] | None) -> Survey:
        """Ask all shards what they hold. Raises ReplayEmpty when there is nothing of the mixture anywhere."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            asked = [shard.available() for shard in self._shards]
            answers: list[tuple[Available, ...]] = []
            for pending in asked:
                try:
                    answers.append(pending.result(self._timeout_s))
                except (ProcessDied, CallTimeout):
                    answers.append(())
            down = sum(not answer for answer in answers)
            if down < len(answers) and (survey := Survey(tuple(answers))).mixture(mixture).any():
                return survey
            if not down:
                raise ReplayEmpty(_what_is_empty(mixture))
            if time.monotonic() > deadline:
                raise ReplayEmpty(f"{down} of {len(answers)} replay shards are down, and no other one holds anything")
            time.sleep(RETRY_INTERVAL_S)

    def _ask(self, first: int, count: int, survey: Survey, mixture: Sequence[float] | None, attempt: int) -> Request:
        draw = (*self._seed, first, attempt)
        rng = np.random.default_rng(draw)
        num, shares = count * self._batch_size, survey.mixture(mixture)
        per_source = [num] if survey.num_sources == 1 else rng.multinomial(num, shares)
        parts = []
        for source, num_of_source in enumerate(per_source):
            totals = survey.totals(source)
            if num_of_source == 0:
                continue
            share = totals / totals.sum()
            for i, n in enumerate(rng.multinomial(num_of_source, share).tolist()):
                if n > 0:
                    name = draw if source == BUFFER else (*draw, source)
                    pending = self._shards[i].sample(n, survey.shards[i][source].version, name, source)
                    parts.append((float(share[i]), source, pending))
        return Request(first, count, survey, shares, parts)

    def _collect(self, request: Request) -> list[SampledSequences] | None:
        """What the shards answered, or None when one died over it or holds something else by now."""
        try:
            answers = [pending.result(self._timeout_s) for _, _, pending in request.parts]
        except (ProcessDied, CallTimeout, ReplayEmpty):
            return None
        found = [answer for answer in answers if answer is not None]
        return found if len(found) == len(answers) else None

    def _assemble(self, request: Request, parts: list[SampledSequences], attempt: int) -> Iterator[Batch]:
        sizes = [len(part.lengths) for part in parts]
        part = np.repeat(np.arange(len(parts)), sizes)
        index = np.concatenate([np.arange(size) for size in sizes])
        within_source = np.concatenate(
            [share * p.probability for (share, _, _), p in zip(request.parts, parts, strict=True)]
        )
        source = np.repeat([source for _, source, _ in request.parts], sizes)
        probability = request.mixture[source] * within_source
        held = np.array([request.survey.trajectories(s) for s in range(request.survey.num_sources)])
        rng = np.random.default_rng((*self._seed, request.first, attempt, 1))
        order = rng.permutation(len(part))
        if self._bucketed:
            lengths = np.concatenate([p.lengths for p in parts])
            order = order[np.argsort(lengths[order], kind="stable")].reshape(-1, self._batch_size)
            order = rng.permutation(order).reshape(-1)
        for i in range(0, len(order), self._batch_size):
            chosen = order[i : i + self._batch_size]
            weight = None
            if self._importance_exponent is not None:
                weight = (held[source[chosen]] * within_source[chosen]) ** -self._importance_exponent
                weight = (weight / weight.max()).astype(np.float32)
            yield Batch(tuple(parts), part[chosen], index[chosen], probability[chosen], weight)

    def update_priorities(self, batches: Sequence[Batch], priorities: np.ndarray) -> None:
        """Tell the shards the priorities (num batches, B) of sequences that were learned from.

        Does not wait. What was sampled from datasets has none. Raises what an earlier call ran into.
        """
        self._largest_priority = max(self._largest_priority, float(priorities.max()))
        news: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
        for batch, values in zip(batches, priorities, strict=True):
            for p, part in enumerate(batch.parts):
                mine = batch.part == p
                if part.source == BUFFER and mine.any():
                    place = (int(part.shard[0]), part.life)
                    news.setdefault(place, []).append((part.number[batch.index[mine]], values[mine]))
        for pending in self._told:
            with contextlib.suppress(ProcessDied, CallTimeout):
                pending.result(self._timeout_s)
        self._told = [
            self._shards[shard].update_priorities(
                life,
                np.concatenate([numbers for numbers, _ in found]),
                np.concatenate([values for _, values in found]),
                self._largest_priority,
            )
            for (shard, life), found in news.items()
        ]
