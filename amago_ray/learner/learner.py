"""The learner: samples batches, updates the agent, publishes the weights that act."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from amago_ray.agent import Agent
from amago_ray.agent.flat_weights import flatten_state
from amago_ray.agent.micro_batches import joined, ready
from amago_ray.agent.optimizers import configured_options, going_on
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.agent.transitions import AgentLoss
from amago_ray.atomic_files import write_atomically
from amago_ray.cuda_graphs import CudaGraphs, CudaRecorder, Recorder, is_known
from amago_ray.learner.batches import Prefetcher, training_batch
from amago_ray.learner.graphed import Gradients, GraphedUpdates, is_recordable, rates_on_device, steps_on_device
from amago_ray.learner.precision import MixedPrecision, precision_on
from amago_ray.learner.provenance import NonFiniteUpdate, describe, origin
from amago_ray.learner.snapshot import Snapshot, not_written, save, set_random_states
from amago_ray.messages import Batch, LearnReport, Weights
from amago_ray.nets.kernels import use_kernels
from amago_ray.nets.recomputation import held_statistics, recomputing
from amago_ray.nets.sizes import LENGTHS, rounded_up
from amago_ray.nets.transformer import Transformer
from amago_ray.warned import warn, warned

PRIORITY_BATCHES = 10  # whose priorities go back to replay together
LARGEST_LOSS = 1e24  # squared errors of 1e12 of the scaled returns: what a number that stands for infinity gives
LEAST_LOSS_SCALE = 2.0**-14  # of fp16: it has been halved 30 times, after as many steps that were not made


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of one learner; see `Experiment` for their meaning.

    last_update: of the run, where the learning rate has come to lr_end_factor of itself.
    device: "cpu", or "cuda" for the GPU in sight. packed: lay sequences end to end in place of padding them; "auto":
        where a Transformer's attention takes them so (`Transformer.attends_packed`).
    micro_batch_size: sequences that go through the networks at a time; None for all of a batch.
    activation_checkpointing: compute again in the backward pass what networks would else keep for it.
    cuda_graphs: start the launches of an update together (see `graphed`); "auto": where that can do no harm.
    compile: put the layers of Transformers through PyTorch's compiler; "packed": where attention takes
        packed batches, and gets them.
    kernels: on a processor, compute by this package's C++ what there is some for (`nets.kernels`), where it compiles.
    """

    device: str = "cpu"
    learning_rate: float = 1e-4
    l2_coeff: float = 1e-3
    lr_warmup_steps: int = 500
    lr_end_factor: float = 1.0
    last_update: int = 0
    grad_clip: float = 1.0
    batches_per_update: int = 1
    mixed_precision: MixedPrecision = "no"
    log_interval: int = 20
    seed: int = 0
    packed: bool | Literal["auto"] = False
    micro_batch_size: int | None = None
    activation_checkpointing: bool = False
    cuda_graphs: CudaGraphs = "auto"
    compile: bool | Literal["packed"] = False
    kernels: bool = False


def learning_rate_factor(config: LearnerConfig, step: int) -> float:
    """What update number `step` (from 0) multiplies the learning rate by: linear up, then linear down."""
    if step < config.lr_warmup_steps:
        return (step + 1) / config.lr_warmup_steps
    fallen = (step - config.lr_warmup_steps) / max(config.last_update - config.lr_warmup_steps, 1)
    return 1.0 - (1.0 - config.lr_end_factor) * min(fallen, 1.0)


class BatchSource(Protocol):
    """What a learner needs from replay; see `replay.client.ReplayReader`."""

    def batches(self, num: int, first: int, mixture: Sequence[float] | None = None) -> Iterator[Batch]: ...

    def update_priorities(self, batches: Sequence[Batch], priorities: np.ndarray) -> None: ...


def _in_group(agent: Agent) -> DistributedDataParallelKwargs:
    """How several learners add up gradients; where some parameters may get none, they look for these every time."""
    left_out = not agent.trains_all or not all(map(is_known, agent.modules()))
    return DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=left_out)


class Learner:
    """Consumes batches, produces weights.

    An update whose loss or gradient is not finite, or whose loss is beyond LARGEST_LOSS, is not made, nor is any after
    it: `train` raises NonFiniteUpdate, and so do `publish` and what saves, until good weights are loaded. On a GPU that
    is found out at the next `log_interval` or at the end of `train`, since an update never waits for the device. In
    fp16, steps are left out by design while the loss scale adapts; what stops is a scale below LEAST_LOSS_SCALE.

    batches: where sampled batches come from, and priorities go: the replay client's `ReplayReader`.
    rank, world_size: place in a data-parallel group; torch.distributed's environment variables must be set for more
    than one.
    packs: whether it lays the sequences of a batch end to end.
    """

    def __init__(
        self,
        config: LearnerConfig,
        agent_spec: AgentSpec,
        batches: BatchSource,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.config = config
        self._batches = batches
        self._action_spec = agent_spec.action_spec
        self.agent: Agent = agent_spec.build().train()
        self._accelerator = Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=precision_on(config.device, config.mixed_precision),
            gradient_accumulation_steps=config.batches_per_update,
            kwargs_handlers=[_in_group(self.agent)] if world_size > 1 else [],
        )
        self.device = self._accelerator.device
        if self.device.type != config.device:
            raise ValueError(f"LearnerConfig.device={config.device!r}: there is none in sight, only {self.device.type}")
        set_seed((config.seed + rank) % 2**32)  # all that NumPy takes
        self._transformers = [m for m in self.agent.modules() if isinstance(m, Transformer)]
        self._use_kernels()
        self.packs = self._packing_pays() if config.packed == "auto" else config.packed
        for transformer in self._transformers:
            if self.packs and transformer.attends_packed if config.compile == "packed" else config.compile:
                transformer.compile_layers()
        recordable = self._accelerator.device.type == "cuda" and world_size == 1 and is_recordable(config, self.agent)
        optimizer = self.agent.init_optimizer(config.learning_rate, config.l2_coeff)
        self._rank, self._world_size = rank, world_size
        self._snapshot: Snapshot | None = None
        self._snapshot_number = 0
        self._writing = threading.Lock()  # the newest snapshot
        self._configured = configured_options(optimizer)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(learning_rate_factor, config))
        self._model, self._optimizer = self._accelerator.prepare(self.agent, optimizer)
        self._trainable = self.agent.trainable_params
        self._max_seq_len = agent_spec.max_seq_len
        self._priority: torch.Tensor | None = None  # (B,) of the last batch, where it was drawn by priority
        self._gradient_norm: torch.Tensor | None = None  # before clipping, of the last optimiser step
        # On the device: the number of the first batch whose update was not finite, or -1; whether there is one; that of
        # this batch; and the learning rates.
        self._bad_batch = torch.full((), -1, dtype=torch.int64, device=self.device)
        self._found_inf = torch.zeros((), device=self.device)
        self._batch_number = torch.zeros((), dtype=torch.int64, device=self.device)
        self._rates = [torch.zeros((), device=self.device) for _ in optimizer.param_groups]
        self._step_in_graph = steps_on_device(optimizer)
        self._graphed = self._graphed_by(CudaRecorder()) if recordable else None
        self._recent: deque[tuple[int, Batch]] = deque(maxlen=config.log_interval + config.batches_per_update)
        self.batches_done = 0
        self.updates_done = 0
        self.weight_version = 0

    def _use_kernels(self) -> None:
        if self.config.kernels and self.device.type == "cpu":
            try:
                use_kernels(self.agent)
            except OSError as error:
                if self.config.compile is True:  # else nobody has asked for it
                    warn(f"kernels for processors are not compiled: {error}")

    def _packing_pays(self) -> bool:
        """Whether packed batches are the faster ones: as long as nothing has to pad them."""
        return (
            self.device.type == "cpu"
            and self.config.micro_batch_size is None
            and len(self._transformers) > 0
            and all(transformer.attends_packed for transformer in self._transformers)
            and all(map(is_known, self.agent.modules()))
        )

    def train(self, num_batches: int, mixture: Sequence[float] | None = None) -> LearnReport:
        """Learn from `num_batches` batches, with one optimiser step every `batches_per_update` of them.

        One of them is logged at least, where `log_interval` is longer.
        mixture: weight of each source of data; None for the replay buffer alone. Raises NonFiniteUpdate.
        """
        started, updates_before, first = time.perf_counter(), self.updates_done, self.batches_done
        logged: list[dict[str, torch.Tensor]] = []
        staleness, padding = [], []
        judged: list[tuple[Batch, torch.Tensor]] = []

        self._model.train()
        with Prefetcher(self._batches.batches(num_batches, first, mixture), self.prepare) as prefetched:
            for batch, tensors in prefetched:
                last = self.batches_done + 1 == first + num_batches
                log = self.batches_done % self.config.log_interval == 0 or (last and not logged)
                self._recent.append((self.batches_done, origin(batch)))
                metrics = self.update(tensors, log)
                self.batches_done += 1
                if log or self.device.type == "cpu" or len(judged) + 1 == PRIORITY_BATCHES:
                    self._check_finite()
                if self._priority is not None:
                    judged.append((batch, self._priority))
                if len(judged) == PRIORITY_BATCHES:
                    self._hand_on_priorities(judged)
                if log:
                    logged.append(metrics)
                    staleness.append(self.weight_version - batch.gather("weight_version").mean())
                    padding.append(0.0 if self.packs else 1.0 - batch.lengths.mean() / tensors.mask.shape[1])
        self._check_finite()
        self._hand_on_priorities(judged)
        report = fetch_means(logged)
        if staleness:
            report["Weight Staleness (versions)"] = float(np.mean(staleness))
            report["Padding (fraction of batch)"] = float(np.mean(padding))
        report["Learning Rate"] = float(self._schedule.get_last_lr()[0])
        return LearnReport(
            updates=self.updates_done - updates_before,
            total_updates=self.updates_done,
            batches=num_batches,
            weight_version=self.weight_version,
            metrics=report,
            wait_s=prefetched.wait_s,
            total_s=time.perf_counter() - started,
            logged=len(logged),
            warned=warned(),
        )

    def prepare(self, batch: Batch) -> TrainingBatch:
        """What `update` takes, on the device. Safe to call from another thread."""
        x, longest = self.config, None
        few_sizes = self.device.type == "cpu" and self._accelerator.mixed_precision != "no"  # see `nets.sizes`
        few_lengths = few_sizes or self._graphed is not None or any(t.is_compiled for t in self._transformers)
        if self.packs:
            longest = self._max_seq_len
        elif few_lengths:  # each length takes new code, or a graph
            longest = rounded_up(int(batch.lengths.max()), self._max_seq_len, LENGTHS)
        with nullcontext() if self._graphed is None else self._graphed.recording:
            return training_batch(
                batch, self._action_spec, self.device, self.packs, x.micro_batch_size, longest, few_sizes
            )

    def update(self, batch: TrainingBatch, log: bool = False) -> dict[str, torch.Tensor]:
        """One batch forward and backward, and an optimiser step if it completes one.

        Waits for the device at no time but before it is recorded.
        """
        with self._accelerator.accumulate(self._model):
            self._batch_number.fill_(self.batches_done)
            if self._graphed is None:
                done = self._gradients_and_step(batch, log)
            else:
                for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
                    rate.fill_(group["lr"])
                done = self._graphed.launched(batch, log) if log else self._graphed(batch)
                if not self._step_in_graph:
                    self._step(done.norm)
            if self._accelerator.sync_gradients:
                self._schedule.step()
                self.agent.update_targets()
                self.updates_done += 1
        self._priority = done.priority
        if done.norm is not None:
            self._gradient_norm = done.norm
        if log and self._gradient_norm is not None:
            done.metrics["Gradient Norm"] = self._gradient_norm
        return done.metrics

    def _graphed_by(self, recorder: Recorder) -> GraphedUpdates:
        if not self._step_in_graph:
            return GraphedUpdates(self._gradients, self.agent, recorder)
        rates = partial(rates_on_device, self._optimizer.optimizer, self._rates)
        return GraphedUpdates(self._gradients_and_step, self.agent, recorder, rates)

    def _gradients_and_step(self, batch: TrainingBatch, log: bool = False) -> Gradients:
        done = self._gradients(batch, log)
        self._step(done.norm)
        return done

    def _step(self, norm: torch.Tensor | None) -> None:
        """The optimiser's step, if this batch completes one. norm: of the gradient, or None where it does not."""
        if norm is not None and self._accelerator.scaler is None:
            self._hold_back(norm)
        self._optimizer.step()
        if self._graphed is None or self._step_in_graph:
            self._optimizer.zero_grad()
        else:
            torch._foreach_zero_([p.grad for p in self._trainable if p.grad is not None])

    def _gradients(self, batch: TrainingBatch, log: bool = False) -> Gradients:
        """Add the gradient of a batch to what is there, and clip it if that completes a step."""
        accelerator = self._accelerator
        with accelerator.autocast():
            pieces = ready(self.agent, batch)
        losses = []
        for number, piece in enumerate(pieces, 1):
            # A group's learners hand on the gradient of the whole alone.
            with nullcontext() if number == len(pieces) else accelerator.no_sync(self._model):
                losses.append(self._backward(piece, log))
        norm = None
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(self._trainable, self.config.grad_clip)
        return Gradients(*joined(batch, pieces, losses), norm)

    def _backward(self, piece: TrainingBatch, log: bool) -> AgentLoss:
        """Add the gradient of a batch, or of a piece of one, to what is there. The loss comes back without its graph.

        A loss that is not finite makes every gradient NaN, so that the norm tells, and on all learners alike.
        """
        accelerator = self._accelerator
        in_pieces = piece.whole is not None
        with accelerator.autocast(), recomputing(self.config.activation_checkpointing):
            with held_statistics() if in_pieces else nullcontext():
                out = self._model(piece, log=log)
        fine = (out.loss.detach().abs() < LARGEST_LOSS).float()
        accelerator.backward(out.loss * (fine / fine))  # 0 / 0 is NaN, and nothing is copied to the device
        return out.detached()

    def _hold_back(self, norm: torch.Tensor) -> None:
        """Leave out the optimiser's next step where this or an earlier gradient is not finite. The device decides."""
        news = ~norm.isfinite() & (self._bad_batch < 0)
        self._bad_batch.copy_(torch.where(news, self._batch_number, self._bad_batch))
        bad = self._bad_batch >= 0
        optimizer = self._optimizer.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            self._found_inf.copy_(bad)
            optimizer.found_inf = self._found_inf  # what a GradScaler tells a fused optimiser
            return
        for parameter in self._trainable:  # others make a step, of their momentum alone: weights stay numbers
            if parameter.grad is not None:
                parameter.grad.masked_fill_(bad, 0.0)

    def _check_finite(self) -> None:
        """Raises NonFiniteUpdate, with the origin of its batches, when an update was not made. Waits for the device."""
        number, scaler = int(self._bad_batch), self._accelerator.scaler
        if scaler is not None and scaler.get_scale() < LEAST_LOSS_SCALE:
            number = self.batches_done - 1
        if number < 0:
            return
        first = number - self.config.batches_per_update + 1
        batches = [batch for n, batch in self._recent if first <= n <= number]
        raise NonFiniteUpdate(
            f"the loss or its gradient overflows or is not a number at batch {number}; that update is not made. It is "
            f"of {describe(batches) if batches else 'unknown origin'}. Look at those rewards and observations, at "
            "encoders and losses of your own, or lower Experiment.learning_rate; what was saved last is from before it"
        )

    def _hand_on_priorities(self, judged: list[tuple[Batch, torch.Tensor]]) -> None:
        """Tell replay the priorities of what was learned from, and forget them: one transfer for many updates."""
        if judged:
            values = torch.stack([priority for _, priority in judged]).float().cpu().numpy()
            self._batches.update_priorities([batch for batch, _ in judged], values)
            judged.clear()

    def publish(self, version: int) -> Weights:
        """The weights that act, under a version that the caller never uses twice."""
        self._check_finite()
        self.weight_version = version
        return Weights(version, flatten_state(self.agent.policy))

    def progress(self) -> int:
        """Batches done so far; safe to ask from another thread while `train` runs."""
        return self.batches_done

    def snapshot(self, number: int = 0) -> None:
        """Copy everything that `load_state` needs to host memory; `write_state` writes it, while `train` goes on.

        number: by which `write_state` asks for it. It takes the place of the one before.
        """
        self._check_finite()
        self._snapshot_number = number
        free = [] if self._snapshot is None or self._writing.locked() else self._snapshot.buffers
        gradients = {name: p.grad for name, p in self.agent.named_parameters() if p.grad is not None}
        self._snapshot = Snapshot.of(
            self.agent,
            {} if self._graphed is not None else gradients,  # theirs are none, or zeros, between updates
            self._optimizer,
            self._schedule,
            self._accelerator.scaler,
            self._accelerator.step,
            (self.batches_done, self.updates_done, self.weight_version),
            free,
        )

    def write_state(self, folder: str, policy: str | None = None, number: int = 0) -> None:
        """Write snapshot `number` into an existing folder, and its agent's weights into the file `policy`.

        Safe to call from another thread while `train` runs. Raises OSError where the disk is full, for example, or
        where another snapshot has been made since.
        """
        with self._writing:
            snapshot = self._snapshot
            if snapshot is None or number != self._snapshot_number:
                raise OSError(f"{folder}: the learner has moved on before it was written")
            try:
                snapshot.write(Path(folder), self._rank)
                if policy is not None and self._accelerator.is_main_process:
                    write_atomically(Path(policy), lambda path: save(snapshot.model, path))
            except Exception as error:  # of several libraries' kinds, where the disk is full for one
                raise not_written(folder, error) from error

    def save_state(self, folder: str) -> None:
        """Everything that `load_state` needs to go on exactly, into an existing folder (accelerate's layout)."""
        self.snapshot()
        self.write_state(folder)

    def load_state(self, folder: str) -> None:
        """Go on from what `write_state` left in `folder`, with the optimiser's arguments of now.

        As the learner of this rank was, bit for bit. The state may be of another number of learners, whose half-made
        update goes on: its gradient is the mean over learners of each batch, of those before and those now.
        Raises ValueError, naming the setting, where the optimiser was of another kind.
        """
        saved = Snapshot.read(Path(folder), self._rank, self._world_size)
        optimizer = going_on(self._optimizer.optimizer, saved.optimizer, self._configured)
        self.agent.load_state_dict(saved.model)
        self._optimizer.load_state_dict(optimizer)
        if self._graphed is not None:
            self._graphed.forget()  # they write into the state that was
        self._schedule.load_state_dict(saved.schedule)
        if self._accelerator.scaler is not None and saved.scaler is not None:
            self._accelerator.scaler.load_state_dict(saved.scaler)
        for name, parameter in self.agent.named_parameters():
            given = saved.gradients.get(name)
            if parameter.grad is not None:
                parameter.grad.zero_()
            if given is not None:
                parameter.grad = given.to(parameter) if parameter.grad is None else parameter.grad.copy_(given)
        set_random_states(saved.rng)
        self._accelerator.step = saved.batches  # learners exchange gradients at the same ones
        self._bad_batch.fill_(-1)
        factor = self._schedule.lr_lambdas[0](self._schedule.last_epoch)
        self._schedule.base_lrs = [group["lr"] for group in self._configured]
        self._schedule._last_lr = [rate * factor for rate in self._schedule.base_lrs]
        for group, now in zip(self._optimizer.param_groups, self._configured, strict=True):
            group.update(lr=now["lr"] * factor, initial_lr=now["lr"])
        self.batches_done, self.updates_done, self.weight_version = saved.counters

    def save_agent(self, path: str) -> None:
        """All weights of the agent as a plain PyTorch file (a state dict on the CPU). Raises OSError."""
        self._check_finite()
        save({name: value.cpu() for name, value in self.agent.state_dict().items()}, path)

    def load_agent(self, path: str) -> None:
        """Start from weights that `save_agent` wrote. Raises RuntimeError when they are of another architecture."""
        self.agent.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._bad_batch.fill_(-1)


def fetch_means(logged: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Means of the logged scalars over the updates that have them, fetched from the device in one transfer.

    Of extremes, which "Min" and "Max" at the end of a name say, the least and the largest.
    """
    if not logged:
        return {}
    names = list(dict.fromkeys(name for row in logged for name in row))
    columns = [torch.stack([row[name].float().reshape(()) for row in logged if name in row]) for name in names]
    found = [_over_updates(name, column) for name, column in zip(names, columns, strict=True)]
    return dict(zip(names, torch.stack(found).tolist(), strict=True))


def _over_updates(name: str, column: torch.Tensor) -> torch.Tensor:
    if name.endswith(" Min"):
        return column.amin()
    return column.amax() if name.endswith(" Max") else column.mean()
