"""From sampled sequences to padded tensors on the learner's device, ahead of time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from amago_ray.data import ACTION, OBS_PREFIX, REWARD, TERMINATED, ActionSpec, Batch
from amago_ray.nets.actions import action_vector
from amago_ray.policy import TrainingBatch


def pad(column: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Rows (sum_i n_i, ...) laid out by `mask` (B, N) bool as (B, N, ...), zeros elsewhere."""
    padded = np.zeros((*mask.shape, *column.shape[1:]), column.dtype)
    padded[mask] = column
    return torch.from_numpy(padded)


def training_batch(batch: Batch, action_spec: ActionSpec, device: torch.device) -> TrainingBatch:
    """Pad to the longest sequence, move in the stored dtypes, and make rl2, one-hots and masks on the device."""
    num_rows = batch.lengths + 1
    row = np.arange(num_rows.max())
    row_mask = row < num_rows[:, None]
    columns = {name: pad(column, row_mask) for name, column in batch.columns.items()}
    time_idx = torch.from_numpy(batch.first_time_idx[:, None] + row)
    mask = torch.from_numpy(row_mask[:, 1:])
    real_rows = torch.from_numpy(np.flatnonzero(row_mask[:, 1:]))
    if device.type == "cuda":
        # Pinned memory makes the copies asynchronous, so that they overlap with the update that is running.
        columns = {name: column.pin_memory().to(device, non_blocking=True) for name, column in columns.items()}
        time_idx = time_idx.pin_memory().to(device, non_blocking=True)
        mask = mask.pin_memory().to(device, non_blocking=True)
        real_rows = real_rows.pin_memory().to(device, non_blocking=True)
    previous_action = action_vector(columns[ACTION], action_spec)  # (B, L+1, A)
    # At the start of a rollout there is no previous action, and a stored 0 must not become a one-hot.
    previous_action = previous_action * (time_idx > 0).unsqueeze(-1)
    reward = columns[REWARD]
    return TrainingBatch(
        obs={name.removeprefix(OBS_PREFIX): c for name, c in columns.items() if name.startswith(OBS_PREFIX)},
        rl2=torch.cat((reward.unsqueeze(-1), previous_action), dim=-1),
        time_idx=time_idx,
        actions=previous_action[:, 1:],
        rewards=reward[:, 1:],
        terminated=columns[TERMINATED][:, 1:].float(),
        mask=mask,
        real_rows=real_rows,
    )


class Prefetcher:
    """Runs `prepare` over an iterator in a thread, a few items ahead of the consumer.

        with Prefetcher(reader.batches(...), to_device) as prefetched:
            for item in prefetched: ...

    An exception of the iterator is raised at the consumer. wait_s: seconds that the consumer has waited.
    """

    _END = object()

    def __init__(self, source: Iterator[Batch], prepare: Callable[[Batch], TrainingBatch], ahead: int = 2):
        self._source, self._prepare = source, prepare
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self.wait_s = 0.0

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():  # free the thread from a full queue
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[Batch, TrainingBatch]]:
        while True:
            started = time.perf_counter()
            item = self._queue.get()
            self.wait_s += time.perf_counter() - started
            if item is self._END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            for batch in self._source:
                self._queue.put((batch, self._prepare(batch)))
                if self._stopped.is_set():
                    return
            self._queue.put(self._END)
        except Exception as error:  # whatever it is, the consumer must see it
            self._queue.put(error)
