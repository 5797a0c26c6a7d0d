"""Updates by CUDA graphs: that of a small network is a thousand launches, and the GPU waits for the host.

A graph replays launches that were recorded once, with the tensors that they read and write in their places. So there is
one for each shape of batch, which `training_batch` keeps few by padding to multiples; heads compute on the padding too
(`TrainingBatch.every_row`), and what the host draws is handed in. Clipping is in the graph, and so is the step of
PyTorch's fused Adam and AdamW (`steps_on_device`): gradients then take memory within the graph alone. Other optimisers
come after it, and read gradients that were added to tensors that stay. Schedule and target networks are never in it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from amago_ray.agent import Agent
from amago_ray.agent.policy import TrainingBatch
from amago_ray.cuda_graphs import CannotRecord, Recorder, is_known
from amago_ray.nets.packed_sequences import on_device
from amago_ray.warned import warn

if TYPE_CHECKING:
    from amago_ray.learner.learner import LearnerConfig

MAX_GRAPHS = 16  # shapes of batches; others are computed launch by launch


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of one batch, as its parameters hold them. metrics: of the loss, where asked for. priority: (B,) or None.

    norm: of the gradient before clipping; None where more batches are to be added.
    """

    metrics: dict[str, Tensor]
    priority: Tensor | None
    norm: Tensor | None


class Compute(Protocol):
    """What is done with a batch: its gradients, metrics where they are to be logged, perhaps the optimiser's step."""

    def __call__(self, batch: TrainingBatch, log: bool = False) -> Gradients: ...


class Recording:
    """One shape of batch: what its launches read, and how to do them."""

    def __init__(self, batch: TrainingBatch, critics: Tensor, compute: Compute, recorder: Recorder):
        self._compute, self._recorder = compute, recorder
        self._batch = TrainingBatch(
            obs={name: x.clone() for name, x in batch.obs.items()},
            rl2=batch.rl2.clone(),
            time_idx=batch.time_idx.clone(),
            actions=batch.actions.clone(),
            rewards=batch.rewards.clone(),
            terminated=batch.terminated.clone(),
            mask=batch.mask.clone(),
            weight=None if batch.weight is None else batch.weight.clone(),
            every_row=True,
            critics=critics.clone(),
        )
        self._replay: Callable[[], None] | None = None
        self._result: Gradients | None = None

    def warm_up(self, batch: TrainingBatch, critics: Tensor) -> Gradients:
        self._put(batch, critics)
        return self._recorder.warm_up(self._function)

    @property
    def made(self) -> bool:
        return self._replay is not None

    def make(self) -> None:
        """Raises CannotRecord."""
        self._replay, self._result = self._recorder.record(self._function)

    def replay(self, batch: TrainingBatch, critics: Tensor) -> Gradients:
        assert self._replay is not None and self._result is not None
        self._put(batch, critics)
        self._replay()
        priority = self._result.priority
        return dataclasses.replace(self._result, priority=None if priority is None else priority.clone())

    def _put(self, batch: TrainingBatch, critics: Tensor) -> None:
        for (_, place), (_, value) in zip(_tensors(self._batch), _tensors(batch), strict=True):
            place.copy_(value)
        assert self._batch.critics is not None
        self._batch.critics.copy_(critics)

    def _function(self) -> Gradients:
        return self._compute(self._batch)


class GraphedUpdates:
    """Does with batches what `compute` does, and with those of a shape that it has seen twice by a recording.

    A recording reads and writes all tensors where they lay when it was made; `forget` recordings where others take
    their places. Gradients that `compute` leaves to the parameters are to be zeroed in place. Where they are others, as
    after an optimiser that puts its own there, or where a recording fails, there is one warning, and `compute` does it
    from then on. recording: held while one is made; who else uses the device should wait for it.

    while_recording: what else is to hold meanwhile.
    """

    def __init__(
        self,
        compute: Compute,
        agent: Agent,
        recorder: Recorder,
        while_recording: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self._compute, self._agent, self._recorder = compute, agent, recorder
        self._while_recording = while_recording
        self._recordings: dict[object, Recording] = {}
        self._gradients: list[Tensor | None] = []
        self.failed = False
        self.recording = threading.Lock()

    def forget(self) -> None:
        """Record anew from here on."""
        self._recordings.clear()
        self._recorder.forget()

    def launched(self, batch: TrainingBatch, log: bool) -> Gradients:
        """`compute(batch, log)` without a recording, but where these are made."""
        return self._recorder.warm_up(lambda: self._compute(batch, log))

    def __call__(self, batch: TrainingBatch) -> Gradients:
        shape = tuple((name, x.shape, x.dtype) for name, x in _tensors(batch))
        full = shape not in self._recordings and len(self._recordings) == MAX_GRAPHS
        if self.failed or full or batch.pieces or batch.packing is not None:
            return self.launched(batch, log=False)
        critics = on_device(self._agent.td_ensemble(1, batch.mask.numel()), batch.mask.device)
        recording = self._recordings.get(shape)
        if recording is None:
            recording = Recording(batch, critics, self._compute, self._recorder)
            self._recordings[shape] = recording
            return recording.warm_up(batch, critics)
        if self._gradients and any(
            p.grad is not x for p, x in zip(self._agent.parameters(), self._gradients, strict=True)
        ):
            return self._without(batch, "the optimiser replaces gradients")
        if not recording.made:
            try:
                with self.recording, self._while_recording():
                    recording.make()
            except CannotRecord as error:
                return self._without(batch, str(error).strip().splitlines()[0])
            self._gradients = [parameter.grad for parameter in self._agent.parameters()]
        return recording.replay(batch, critics)

    def _without(self, batch: TrainingBatch, why: str) -> Gradients:
        """Give recordings up."""
        warn(f"updates go on without CUDA graphs: {why}", stacklevel=3)
        self.failed = True
        self.forget()
        self._gradients = []
        for parameter in self._agent.parameters():
            parameter.grad = None  # what was recorded there is none
        return self.launched(batch, log=False)


def _tensors(batch: TrainingBatch) -> Iterator[tuple[str, Tensor]]:
    """By name, all tensors of a padded batch that the loss reads but for those that tell which transitions are real."""
    for name in ("rl2", "time_idx", "actions", "rewards", "terminated", "mask"):
        yield name, getattr(batch, name)
    if batch.weight is not None:
        yield "weight", batch.weight
    for name in sorted(batch.obs):
        yield f"obs.{name}", batch.obs[name]


def steps_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of it is launches alone, with nothing that changes from step to step but its learning rates.

    (Subclasses, and functions that were hooked to it, may do something in Python each time.)
    """
    known = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return known and not hooked and all(group["fused"] for group in optimizer.param_groups)


@contextmanager
def rates_on_device(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, of a recording, a step of an optimiser that `steps_on_device` reads its groups' learning rates
    from tensors of one number each."""
    given = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    try:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(lr=rate, capturable=True)
        yield
    finally:
        for group, (rate, capturable) in zip(optimizer.param_groups, given, strict=True):
            group.update(lr=rate, capturable=capturable)


def is_recordable(config: LearnerConfig, agent: Agent) -> bool:
    """Whether updates of this agent may be recorded; with "auto", whether they may without anybody having looked.

    Not where shapes or the number of launches depend on the data (packed sequences, pieces), where part of the update
    is left out by what the host sees (fp16), where random states are read (activations and dropped attention weights
    computed again), nor where a mask of actions says that none is legal in the padding, on which heads compute too.
    """
    same_launches = (
        config.packed is not True and config.micro_batch_size is None and not config.activation_checkpointing
    )
    whole = config.batches_per_update == 1 and config.mixed_precision != "fp16"
    drops_attention = any(getattr(module, "dropout_attn", 0.0) > 0.0 for module in agent.modules())
    if config.cuda_graphs == "never" or not same_launches or not whole or drops_attention:
        return False
    if agent.policy.action_mask_key is not None:
        return False
    return config.cuda_graphs == "always" or all(map(is_known, agent.modules()))
