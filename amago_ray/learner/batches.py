"""From sampled sequences to padded tensors on the learner's device, ahead of time."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from amago_ray.agent.micro_batches import cut
from amago_ray.agent.policy import TrainingBatch
from amago_ray.messages import ACTION, REWARD, TERMINATED, Batch
from amago_ray.nets.actions import action_vector
from amago_ray.nets.packed_sequences import Packing, on_device
from amago_ray.nets.sizes import rows_of
from amago_ray.specs import OBS_PREFIX, ActionSpec


def pad(rows: Sequence[np.ndarray], length: int, pin: bool = False) -> torch.Tensor:
    """B arrays (n_b, ...) as one tensor (B, length, ...), zeros at the end. pin: in page-locked memory."""
    first = rows[0]
    dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
    padded = torch.empty((len(rows), length, *first.shape[1:]), dtype=dtype, pin_memory=pin)
    view = padded.numpy()
    for b, values in enumerate(rows):
        view[b, : len(values)] = values
        view[b, len(values) :] = 0
    return padded


def end_to_end(rows: Sequence[np.ndarray], pin: bool = False, filled: int = 0) -> torch.Tensor:
    """B arrays (n_b, ...) as one tensor (1, sum_b n_b + filled, ...), zeros behind them. pin: in page-locked memory."""
    first = rows[0]
    dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
    real = sum(map(len, rows))
    packed = torch.empty((1, real + filled, *first.shape[1:]), dtype=dtype, pin_memory=pin)
    np.concatenate(rows, out=packed[0, :real].numpy())
    packed[0, real:] = 0
    return packed


def training_batch(
    batch: Batch,
    action_spec: ActionSpec,
    device: torch.device,
    packed: bool = False,
    micro_batch_size: int | None = None,
    longest: int | None = None,
    few_sizes: bool = False,
) -> TrainingBatch:
    """Move to the device in the stored dtypes, and make rl2, one-hots and masks there.

    Sequences are padded to the longest, or, if `packed`, what belongs to timesteps is laid end to end.
    micro_batch_size: sequences of a piece, where the batch has more of them; None for no pieces.
    longest: transitions to pad to, in place of those of the longest sequence; where `packed` the most there can be.
    few_sizes: fill up the numbers of real transitions, and of packed timesteps (see `sizes.rows_of`).
    """
    # Pinned memory makes the copies asynchronous, so that they overlap with the update that is running.
    pin = device.type == "cuda"
    its_longest = int(batch.lengths.max())
    fullest = its_longest if longest is None else longest
    longest = its_longest if packed else fullest
    row = np.arange(longest + 1)
    real = row[:longest] < batch.lengths[:, None]
    packing = Packing.of(batch.lengths + 1, device, fullest + 1 if few_sizes else None) if packed else None
    real_rows, filled = rows_of(real, few_sizes, len(real) * fullest)

    def to_device(values: np.ndarray) -> torch.Tensor:
        return on_device(values, device)

    def timesteps(rows: Sequence[np.ndarray]) -> torch.Tensor:
        laid_out = pad(rows, longest + 1, pin) if packing is None else end_to_end(rows, pin, packing.filled_rows)
        return laid_out.to(device, non_blocking=True)

    def transitions(x: torch.Tensor) -> torch.Tensor:
        """(B, L, ...) of what each timestep says of the transition into it."""
        return (x if packing is None else packing.pad(x))[:, 1:]

    columns = {name: timesteps(batch.rows(name)) for name in batch.column_names}
    time_idx_BL = batch.first_time_idx[:, None] + row
    if packing is not None:
        time_idx_BL = np.pad(time_idx_BL[row <= batch.lengths[:, None]], (0, packing.filled_rows))[None]
    time_idx = to_device(time_idx_BL)
    previous_action = action_vector(columns[ACTION], action_spec)
    # At the start of a rollout there is no previous action, and a stored 0 must not become a one-hot.
    previous_action = previous_action * (time_idx > 0).unsqueeze(-1)
    reward = columns[REWARD]
    whole = TrainingBatch(
        obs={name.removeprefix(OBS_PREFIX): c for name, c in columns.items() if name.startswith(OBS_PREFIX)},
        rl2=torch.cat((reward.unsqueeze(-1), previous_action), dim=-1),
        time_idx=time_idx,
        actions=transitions(previous_action),
        rewards=transitions(reward),
        terminated=transitions(columns[TERMINATED]).float(),
        mask=to_device(real),
        real_rows=to_device(real_rows),
        filled=filled,
        weight=None if batch.weight is None else to_device(batch.weight),
        packing=packing,
    )
    if micro_batch_size is None or micro_batch_size >= len(batch.lengths):
        return whole
    return cut(whole, batch.lengths, micro_batch_size, few_sizes)


class Prefetcher:
    """Runs `prepare` over an iterator in a thread, a few items ahead of the consumer.

        with Prefetcher(reader.batches(...), to_device) as prefetched:
            for item in prefetched: ...

    An exception of the iterator is raised at the consumer. wait_s: seconds that the consumer has waited. The thread
    computes alone, whatever `torch.set_num_threads` said: a team of its own would put the consumer's to sleep.
    """

    _END = object()

    def __init__(self, source: Iterator[Batch], prepare: Callable[[Batch], TrainingBatch], ahead: int = 2):
        self._source, self._prepare = source, prepare
        self._queue: queue.Queue = queue.Queue(maxsize=ahead)
        self._stopped, self._alone = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self.wait_s = 0.0

    def __enter__(self) -> Prefetcher:
        threads = torch.get_num_threads()
        self._thread.start()
        self._alone.wait()
        # The thread has set MKL's number for the whole process, and what threads to come begin with.
        torch.set_num_threads(threads)
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
        torch.set_num_threads(1)
        torch.get_num_threads()  # reads it; a thread does so once
        self._alone.set()
        try:
            for batch in self._source:
                self._queue.put((batch, self._prepare(batch)))
                if self._stopped.is_set():
                    return
            self._queue.put(self._END)
        except Exception as error:  # whatever it is, the consumer must see it
            self._queue.put(error)
