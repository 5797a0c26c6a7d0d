"""Gradients by CUDA graphs: an update of a small network is a thousand launches, and the GPU waits for the host.

A graph replays launches that were recorded once, with the tensors that they read and write in their places. So there is
one for each shape of batch, which `training_batch` keeps few by padding to multiples; heads compute on the padding too
(`TrainingBatch.every_row`), what the host draws is handed in, and gradients are added to tensors that stay. Clipping is
in the graph; optimiser, schedule and target networks are not, so that they may be anything.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from amago_ray.agent import Agent
from amago_ray.agent.policy import TrainingBatch
from amago_ray.nets.packed_sequences import on_device

if TYPE_CHECKING:
    from amago_ray.learner.learner import LearnerConfig

CudaGraphs = Literal["auto", "always", "never"]
LENGTHS = 8  # of padded batches, at most, that recordings are made for
MAX_GRAPHS = 16  # shapes of batches; others are computed launch by launch
KNOWN = ("amago_ray.", "torch.")  # whose modules keep nothing in Python that changes from update to update


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of one batch, as its parameters hold them. metrics: of the loss, where asked for. priority: (B,) or None.

    norm: of the gradient before clipping; None where more batches are to be added.
    """

    metrics: dict[str, Tensor]
    priority: Tensor | None
    norm: Tensor | None


Compute = Callable[[TrainingBatch], Gradients]


class Recorder(Protocol):
    """How launches are recorded."""

    def warm_up(self, function: Callable[[], Gradients]) -> Gradients:
        """Call it once, so that libraries allocate what they keep."""

    def record(self, function: Callable[[], Gradients]) -> tuple[Callable[[], None], Gradients]:
        """What does again on the device what `function` does, and where its results are then. Nothing is done yet."""


class CudaRecorder:
    """Records CUDA graphs, whose intermediate results share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Gradients]) -> Gradients:
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            result = function()
        here.wait_stream(aside)
        return result

    def record(self, function: Callable[[], Gradients]) -> tuple[Callable[[], None], Gradients]:
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone, should another one use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


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
        self._warm = False

    def __call__(self, batch: TrainingBatch, critics: Tensor) -> Gradients:
        for (_, place), (_, value) in zip(_tensors(self._batch), _tensors(batch), strict=True):
            place.copy_(value)
        assert self._batch.critics is not None
        self._batch.critics.copy_(critics)
        if not self._warm:
            self._warm = True
            return self._recorder.warm_up(self._function)
        if self._replay is None:
            self._replay, self._result = self._recorder.record(self._function)
        self._replay()
        assert self._result is not None
        priority = self._result.priority
        return dataclasses.replace(self._result, priority=None if priority is None else priority.clone())

    @property
    def made(self) -> bool:
        return self._replay is not None

    def _function(self) -> Gradients:
        return self._compute(self._batch)


class GraphedGradients:
    """Computes gradients of batches as `compute` does, and those of a shape that it has seen twice by a recording.

    Parameters must keep their gradients' tensors: zero them in place. Where a recording fails there is one warning, and
    `compute` does it from then on. recording: held while one is made; who else uses the device then should wait for it.
    """

    def __init__(self, compute: Compute, agent: Agent, recorder: Recorder):
        self._compute, self._agent, self._recorder = compute, agent, recorder
        self._recordings: dict[object, Recording] = {}
        self.failed = False
        self.recording = threading.Lock()

    def __call__(self, batch: TrainingBatch) -> Gradients:
        shape = tuple((name, x.shape, x.dtype) for name, x in _tensors(batch))
        full = shape not in self._recordings and len(self._recordings) == MAX_GRAPHS
        if self.failed or full or batch.pieces or batch.packing is not None:
            return self._compute(batch)
        critics = on_device(self._agent.td_ensemble(1, batch.mask.numel()), batch.mask.device)
        recording = self._recordings.get(shape)
        if recording is None:
            recording = Recording(batch, critics, self._compute, self._recorder)
            self._recordings[shape] = recording
        try:
            with nullcontext() if recording.made else self.recording:
                return recording(batch, critics)
        except RuntimeError as error:
            warnings.warn(f"updates go on without CUDA graphs: {str(error).splitlines()[0]}", stacklevel=2)
            self.failed = True
            self._recordings.clear()
            for parameter in self._agent.parameters():
                parameter.grad = None  # what was begun is no gradient
            return self._compute(batch)


def _tensors(batch: TrainingBatch) -> Iterator[tuple[str, Tensor]]:
    """By name, all tensors of a padded batch that the loss reads but for those that tell which transitions are real."""
    for name in ("rl2", "time_idx", "actions", "rewards", "terminated", "mask"):
        yield name, getattr(batch, name)
    if batch.weight is not None:
        yield "weight", batch.weight
    for name in sorted(batch.obs):
        yield f"obs.{name}", batch.obs[name]


def is_recordable(config: LearnerConfig, agent: Agent) -> bool:
    """Whether updates of this agent may be recorded; with "auto", whether they may without anybody having looked.

    Not where shapes or the number of launches depend on the data (packed sequences, pieces), where part of the update
    is left out by what the host sees (fp16), where random states are read (activations computed again), nor where a
    mask of actions says that none is legal in the padding, on which heads compute too.
    """
    same_launches = not config.packed and config.micro_batch_size is None and not config.activation_checkpointing
    whole = config.batches_per_update == 1 and config.mixed_precision != "fp16"
    if config.cuda_graphs == "never" or not same_launches or not whole or agent.policy.action_mask_key is not None:
        return False
    return config.cuda_graphs == "always" or _is_known(agent)


def _is_known(agent: Agent) -> bool:
    """Whether all of an agent is of this package and of PyTorch: other code may do something in Python each time."""
    classes = {base for module in agent.modules() for base in type(module).__mro__}
    modules = {x.__module__ for x in classes} | {getattr(agent.filter, "__module__", "")}
    return all(name.startswith(KNOWN) or name in ("builtins", "typing", "abc") for name in modules)
