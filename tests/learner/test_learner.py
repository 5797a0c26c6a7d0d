"""`Learner.update`: it never waits for the device, computes nothing twice, and keeps losses and states in float32."""

from __future__ import annotations

import dataclasses
import errno
import math
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from agent_cases import ACTION_SPECS, LENGTHS, OBS_SPEC, L, actor, bin_critics, critics, ff, gru, make_batch, tformer
from agent_cases import tstep_encoder as ff_tstep
from ring_cases import make_shards, trajectory
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.agent.losses import exp_filter, leaky_relu_filter
from amago_ray.agent.optimizers import AdamWRel, configured_options
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.atomic_files import is_full
from amago_ray.learner.learner import Learner, LearnerConfig, fetch_means
from amago_ray.learner.precision import MixedPrecision
from amago_ray.learner.snapshot import MODEL, OPTIMIZER, RNG
from amago_ray.messages import Batch
from amago_ray.nets.attention import SlidingSinkAttention
from amago_ray.nets.cnn import GridworldCNN
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.mamba import SelectiveScan
from amago_ray.nets.policy_outputs import GMM, Beta
from amago_ray.nets.recurrent import GRURecurrence
from amago_ray.nets.traj_encoders import IdentityTrajEncoder, MambaTrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.specs import ArraySpec, ObsSpec

TRAJ_ENCODERS = {
    "identity": IdentityTrajEncoder,
    "ff": ff,
    "gru": gru,
    "transformer": tformer,
    "mamba": partial(MambaTrajEncoder, d_model=16, d_state=4, n_layers=1),
}
AGENTS = {"Agent": (Agent, critics), "MultiTaskAgent": (MultiTaskAgent, bin_critics)}
SINK_ATTENTION = partial(SlidingSinkAttention, window_size=3, sink_size=1, logit_clip=10.0)
by_agent = pytest.mark.parametrize("agent", AGENTS)
by_encoder = pytest.mark.parametrize("encoder", TRAJ_ENCODERS)
by_kind = pytest.mark.parametrize("kind", ["discrete", "continuous"])


def forget_accelerator() -> None:
    """`accelerate` keeps a process to its first precision. Each learner has a process of its own; tests share one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def an_accelerator_of_its_own() -> Iterator[None]:
    forget_accelerator()
    yield
    forget_accelerator()


def make_learner(
    agent: str = "Agent",
    kind: str = "discrete",
    encoder: Any = gru,
    tstep_encoder: Any = ff_tstep,
    obs_spec: ObsSpec = OBS_SPEC,
    precision: MixedPrecision = "no",
    batches_per_update: int = 1,
    learning_rate: float = 1e-3,
    l2_coeff: float = 1e-3,
    action_mask_key: str | None = None,
    lr_warmup_steps: int = 1,
    lr_end_factor: float = 1.0,
    last_update: int = 0,
    rank: int = 0,
    world_size: int = 1,
    **settings: object,
) -> Learner:
    agent_type, critic_type = AGENTS[agent]
    agent_type = partial(agent_type, **{"actor_type": actor, "critic_type": critic_type, **settings})
    spec = AgentSpec(obs_spec, ACTION_SPECS[kind], L, tstep_encoder, encoder, agent_type, 0, action_mask_key)
    config = LearnerConfig(
        learning_rate=learning_rate,
        l2_coeff=l2_coeff,
        lr_warmup_steps=lr_warmup_steps,
        lr_end_factor=lr_end_factor,
        last_update=last_update,
        mixed_precision=precision,
        batches_per_update=batches_per_update,
    )
    return Learner(config, spec, NoBatches(), rank, world_size)


class NoBatches:
    """A source for learners whose updates are called one by one."""

    def batches(self, num: int, first: int, mixture: object = None) -> Iterator[Batch]:
        return iter(())

    def update_priorities(self, batches: object, priorities: object) -> None:
        raise AssertionError("nothing was sampled")


def prepared_batch(kind: str, seed: int = 0) -> TrainingBatch:
    """A batch as the learner's prefetching thread hands it over."""
    batch = make_batch(kind, seed)
    return dataclasses.replace(batch, real_rows=batch.mask.flatten().nonzero().squeeze(1))


# --- the optimiser ---------------------------------------------------------------------------------------------------


class TwoRates(Agent):
    """Critics learn ten times as fast, without weight decay."""

    def init_optimizer(self, learning_rate: float, l2_coeff: float) -> torch.optim.Optimizer:
        critics = [p for name, p in self.named_parameters() if name.startswith("critics.")]
        groups = [
            {"params": list(self.policy.parameters()), "lr": learning_rate, "weight_decay": l2_coeff},
            {"params": critics, "lr": 10 * learning_rate, "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups)


def test_an_agent_s_own_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its groups keep their rates, also when a run goes on with another learning rate and weight decay."""
    monkeypatch.setitem(AGENTS, "Agent", (TwoRates, critics))

    def settings(learner: Learner) -> list[tuple[float, float]]:
        return [(group["lr"], group["weight_decay"]) for group in learner._optimizer.param_groups]

    learner = make_learner()
    assert settings(learner) == [(1e-3, 1e-3), (1e-2, 0.0)]
    before = learner.agent.critics.inp_layer.weight.clone()
    learner.update(prepared_batch("discrete"))
    assert not torch.equal(learner.agent.critics.inp_layer.weight, before)
    learner.save_state(str(tmp_path))
    forget_accelerator()
    other = make_learner(learning_rate=1e-4, l2_coeff=0.5)
    other.load_state(str(tmp_path))
    assert settings(other) == [(1e-4, 0.5), (1e-3, 0.0)]
    assert other._schedule.get_last_lr() == [1e-4, 1e-3] and other.updates_done == 1


@pytest.mark.parametrize(
    ("warmup", "end", "last", "factors"),
    [
        (4, 0.2, 8, [0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        (2, 1.0, 4, [0.5, 1, 1, 1, 1, 1, 1]),
        (0, 0.0, 2, [1, 0.5, 0, 0]),
        (3, 0.5, 2, [1 / 3, 2 / 3, 1, 1, 0.5]),
    ],
)
def test_the_learning_rate_rises_and_falls_linearly(warmup: int, end: float, last: int, factors: list[float]) -> None:
    learner = make_learner(learning_rate=0.5, lr_warmup_steps=warmup, lr_end_factor=end, last_update=last)
    rates = []
    for _ in factors:
        rates.append(learner._optimizer.param_groups[0]["lr"])
        learner.update(prepared_batch("discrete"))
    np.testing.assert_allclose(rates, [0.5 * factor for factor in factors], atol=1e-12)


# --- waiting for the device ------------------------------------------------------------------------------------------

# Operators whose result, or its shape, the host must read from the device.
READING = (
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount", "repeat_interleave", "_linalg_check_errors",
)  # fmt: skip
METHODS_OUT = ("tolist", "numpy", "cpu", "__array__")  # these reach a CPU tensor's memory without any operator


class HostReads(TorchDispatchMode):
    """Collects the name of every operator that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, indices = func.overloadpacket.__name__, args[1] if len(args) > 1 else None
        by_mask = "index" in name and isinstance(indices, (list, tuple)) and any(map(is_mask, indices))
        if name in READING or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def is_mask(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)


def one_hot(index: Tensor, num_classes: int) -> Tensor:
    """`F.one_hot` as on a GPU: only on a CPU does PyTorch look at the indices first, to check their range."""
    return (index.unsqueeze(-1) == torch.arange(num_classes)).long()


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The names of all that waits for the device within the block."""
    with pytest.MonkeyPatch.context() as patch, HostReads() as reads:
        for name in METHODS_OUT:
            method = getattr(Tensor, name)
            patch.setattr(
                Tensor, name, lambda *a, _name=name, _method=method, **k: reads.found.append(_name) or _method(*a, **k)
            )
        patch.setattr(F, "one_hot", one_hot)
        yield reads.found


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.zeros(())),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: x.unique(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: torch.equal(x, x),
        lambda x: torch.distributions.Normal(x, 1.0, validate_args=True),
    ],
)
def test_host_reads_are_found(read: Callable[[Tensor], Any]) -> None:
    with host_reads() as found:
        read(torch.randn(5))
    assert found


def check_updates(learner: Learner, batch: TrainingBatch) -> None:
    learner.update(batch)  # the optimiser makes its state in the first step
    for log in (False, True):
        before = learner.agent.critics.inp_layer.weight.detach().clone()
        with host_reads() as found:
            learner.update(batch, log=log)
        assert found == [], f"log={log}"
        assert not torch.equal(before, learner.agent.critics.inp_layer.weight), "a whole update was watched"


@by_agent
@by_encoder
@pytest.mark.parametrize("kind", ACTION_SPECS)
def test_an_update_never_waits_for_the_device(agent: str, encoder: str, kind: str) -> None:
    """Forward, backward, clipping, optimiser step and target networks."""
    check_updates(make_learner(agent, kind, TRAJ_ENCODERS[encoder]), prepared_batch(kind))


@by_agent
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("discrete", {"precision": "bf16", "n_step": 3}),
        ("discrete", {"online_coeff": 1.0, "fbc_filter_func": exp_filter}),
        ("continuous", {"online_coeff": 0.0, "fbc_filter_func": leaky_relu_filter, "use_target_actor": False}),
        ("continuous", {"actor_type": partial(actor, policy_output_type=Beta)}),
        ("continuous", {"actor_type": partial(actor, policy_output_type=GMM), "online_coeff": 0.0}),
        ("discrete", {"encoder": partial(tformer, pos_emb="learnable", dropout_ff=0.1)}),
        ("discrete", {"encoder": partial(tformer, pos_emb="rope", attention_type=SINK_ATTENTION)}),
    ],
)
def test_no_setting_makes_it_wait(agent: str, kind: str, settings: dict[str, Any]) -> None:
    check_updates(make_learner(agent, kind, **settings), prepared_batch(kind))


@by_agent
def test_action_masks_do_not_make_it_wait(agent: str) -> None:
    batch, masks = prepared_batch("discrete"), torch.randint(2, (len(LENGTHS), L + 1, 4), dtype=torch.int8)
    learner = make_learner(agent, obs_spec={**OBS_SPEC, "legal": ArraySpec((4,), "int8")}, action_mask_key="legal")
    check_updates(learner, dataclasses.replace(batch, obs=batch.obs | {"legal": masks}))


def test_images_do_not_make_it_wait() -> None:
    batch, images = prepared_batch("discrete"), torch.randint(256, (len(LENGTHS), L + 1, 9, 9, 3), dtype=torch.uint8)
    encoder = partial(CNNTstepEncoder, cnn_type=GridworldCNN, drqv2_aug=True)
    learner = make_learner(tstep_encoder=encoder, obs_spec={"image": ArraySpec((9, 9, 3), "uint8")})
    check_updates(learner, dataclasses.replace(batch, obs={"image": images}))


# --- nothing is computed twice ---------------------------------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, *names: str) -> tuple[Counter[str], list[Tensor]]:
    """How often each method of `owner` is called from now on, and what with."""
    calls: Counter[str] = Counter()
    inputs: list[Tensor] = []
    for name in names:

        def call(method: Any, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            inputs.append(x)
            return method(x, *args, **kwargs)

        monkeypatch.setattr(owner, name, partial(call, getattr(owner, name), name))
    return calls, inputs


@by_agent
@by_kind
@by_encoder
def test_an_update_computes_nothing_twice(agent: str, kind: str, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network sees each state once, critics judge two sets of actions, and what they say is decoded once."""
    learner = make_learner(agent, kind, TRAJ_ENCODERS[encoder])
    a = learner.agent
    of_critics, _ = counted(monkeypatch, a.critics, "prepare", "values")
    of_targets, _ = counted(monkeypatch, a.target_critics, "prepare", "values_of")
    others = [counted(monkeypatch, a.policy, "encode")[0]]
    others += [counted(monkeypatch, x, "params")[0] for x in (a.policy.actor, a.target_actor)]
    scalars, decoded = counted(monkeypatch, a, "scalars")
    learner.update(prepared_batch(kind))
    assert of_critics == {"prepare": 1, "values": 2}, "what the batch did, and what the policy would do"
    assert of_targets == {"prepare": 1, "values_of": 1}
    assert all(calls.total() == 1 for calls in others)
    assert scalars.total() == 3, "of what was done, of what the policy would do, and of the target critics"
    assert len({x.data_ptr() for x in decoded}) == len(decoded)


# --- the optimiser ---------------------------------------------------------------------------------------------------


def test_an_optimiser_of_ones_own_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    """Between two resets of its step count."""
    make = partial(make_learner, optimizer_type=partial(AdamWRel, reset_interval=3))
    learner, batch = make(), prepared_batch("discrete")
    for _ in range(4):
        learner.update(batch)
    learner.save_state(str(tmp_path))
    for _ in range(3):
        learner.update(batch)
    forget_accelerator()
    resumed = make()
    resumed.load_state(str(tmp_path))
    for _ in range(3):
        resumed.update(batch)
    for name, value in resumed.agent.state_dict().items():
        assert torch.equal(value, learner.agent.state_dict()[name]), name


def resumed_with(tmp_path: Path, before: Any, now: Any, **settings: Any) -> Learner:
    """A learner that has gone on, by another optimiser, from what one had learned."""
    learner = make_learner(optimizer_type=before)
    for _ in range(2):
        learner.update(prepared_batch("discrete"))
    learner.save_state(str(tmp_path))
    forget_accelerator()
    other = make_learner(optimizer_type=now, **settings)
    other.load_state(str(tmp_path))
    return other


Adam, AdamW, SGD, RMSprop = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, partial(AdamW, betas=(0.5, 0.6), eps=1e-3)),
        (None, partial(AdamW, amsgrad=True)),
        (partial(AdamW, amsgrad=True), None),
        (None, Adam),
        (Adam, None),
        (None, SGD),
        (partial(SGD, momentum=0.9), partial(SGD, momentum=0.5, nesterov=True)),
        (partial(AdamWRel, reset_interval=3), partial(AdamWRel, reset_interval=2, betas=(0.5, 0.6))),
    ],
)
def test_a_resumed_optimiser_has_the_arguments_of_now(tmp_path: Path, before: Any, now: Any) -> None:
    other = resumed_with(tmp_path, before, now, learning_rate=1e-4, l2_coeff=0.5)
    done = other._optimizer.param_groups[0].get("updates_since_reset")
    assert done in (None, 2), "how far it has come is no argument"
    found = configured_options(other._optimizer.optimizer)
    forget_accelerator()
    fresh = make_learner(optimizer_type=now, learning_rate=1e-4, l2_coeff=0.5)
    assert found == configured_options(fresh._optimizer.optimizer)
    weights = other.agent.critics.inp_layer.weight.clone()
    other.update(prepared_batch("discrete"))
    assert not torch.equal(other.agent.critics.inp_layer.weight, weights)


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (
            None,
            partial(SGD, momentum=0.9),
            "SGD keeps momentum_buffer of each .* kept exp_avg, exp_avg_sq, step",
        ),
        (
            None,
            RMSprop,
            "RMSprop keeps square_avg of each weight, and the optimiser of the run kept exp_avg",
        ),
        (partial(SGD, momentum=0.9), Adam, "Adam keeps exp_avg, exp_avg_sq, step of each .* kept momentum_buffer"),
    ],
)
def test_an_optimiser_of_another_kind_is_refused(tmp_path: Path, before: Any, now: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^resume: Agent.optimizer_type={said}.*; set it back, or begin"):
        resumed_with(tmp_path, before, now)


@pytest.mark.parametrize("encoder", TRAJ_ENCODERS)
def test_every_encoder_goes_on_from_a_state_in_a_learner_that_is_just_made(encoder: str, tmp_path: Path) -> None:
    learner = make_learner(encoder=TRAJ_ENCODERS[encoder])
    learner.update(prepared_batch("discrete"))
    learner.save_state(str(tmp_path))
    saved = {name: value.clone() for name, value in learner.agent.state_dict().items()}
    forget_accelerator()
    resumed = make_learner(encoder=TRAJ_ENCODERS[encoder])
    resumed.load_state(str(tmp_path))
    assert all(torch.equal(value, saved[name]) for name, value in resumed.agent.state_dict().items())


def test_a_further_learner_of_the_largest_seed_begins_its_streams_anew() -> None:
    spec = AgentSpec(OBS_SPEC, ACTION_SPECS["discrete"], L, ff_tstep, gru, partial(Agent, actor_type=actor), 0)
    drawn = []
    for seed, rank in ((2**32 - 1, 1), (0, 0)):
        Learner(LearnerConfig(seed=seed), spec, NoBatches(), rank)
        drawn.append((np.random.random(), torch.rand(3).tolist()))
        forget_accelerator()
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(("room", "fails"), [(1_000, RNG + "0.pkl"), (20_000, MODEL), (50_000, OPTIMIZER)])
def test_a_state_that_finds_no_room_says_so(tmp_path: Path, room: int, fails: str) -> None:
    """Its files are written by two libraries, with errors of their own."""
    learner = make_learner()
    learner.update(prepared_batch("discrete", 0))
    whole = tmp_path / "whole"
    whole.mkdir()
    learner.save_state(str(whole))
    assert (whole / fails).stat().st_size > room
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError) as refused:
            learner.save_state(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_full(refused.value)
    assert str(refused.value) == f"[Errno {errno.EFBIG}] {tmp_path}: File too large"


def test_what_is_written_is_the_moment_of_the_snapshot(tmp_path: Path) -> None:
    """However many updates follow before, and while, it is written; dropout goes on as it would have, too."""
    make = partial(make_learner, encoder=partial(tformer, dropout_ff=0.5), batches_per_update=2)
    learner, batches = make(), [prepared_batch("discrete", seed) for seed in range(4)]
    for batch in batches[:3]:  # the second update is half accumulated
        learner.update(batch)
    learner.snapshot()
    first = tmp_path / "first"
    first.mkdir()
    for _ in range(2):  # the second time into memory that is there
        for batch in batches[3:] + batches:
            learner.update(batch)
        if not any(first.iterdir()):
            with pytest.raises(OSError, match="the learner has moved on before it was written"):
                learner.write_state(str(first), number=1)
            learner.write_state(str(first), str(tmp_path / "policy.pt"))
            expected = {name: value.clone() for name, value in learner.agent.state_dict().items()}
            learner.snapshot()
    forget_accelerator()
    resumed = make()
    resumed.load_state(str(first))
    saved = torch.load(tmp_path / "policy.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in resumed.agent.state_dict().items())
    for batch in batches[3:] + batches:
        resumed.update(batch)
    for name, value in resumed.agent.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert resumed.updates_done == 4


def test_a_state_of_fewer_learners_and_accelerate_s_own_reader(tmp_path: Path) -> None:
    learner = make_learner()
    learner.update(prepared_batch("discrete"))
    learner.save_state(str(tmp_path))
    (tmp_path / "random_states_0.pkl").rename(tmp_path / "random_states_7.pkl")
    forget_accelerator()
    resumed = make_learner()
    resumed.load_state(str(tmp_path))
    assert resumed.updates_done == 1
    forget_accelerator()
    other = make_learner()
    other._accelerator.register_for_checkpointing(other._schedule)
    other._accelerator.load_state(str(tmp_path))
    for name, value in other.agent.state_dict().items():
        assert torch.equal(value, learner.agent.state_dict()[name]), name


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 3)])
def test_a_half_made_update_goes_on_with_another_number_of_learners(tmp_path: Path, before: int, now: int) -> None:
    """All of them end it at the same batch, and its gradient so far is what the group had: the mean over learners."""

    def gradients(learner: Learner) -> dict[str, Tensor]:
        return {name: p.grad for name, p in learner.agent.named_parameters() if p.grad is not None}

    had = []
    for rank in range(before):  # apart, as learners are until they exchange gradients
        learner = make_learner(batches_per_update=3, rank=rank, world_size=before)
        for seed in range(2):
            learner.update(prepared_batch("discrete", 10 * rank + seed))
        learner.save_state(str(tmp_path))
        had.append(gradients(learner))
        forget_accelerator()
    expected = {name: sum(of_one[name] for of_one in had) / before for name in had[0]}
    for rank in range(now):
        learner = make_learner(batches_per_update=3, rank=rank, world_size=now)
        learner.load_state(str(tmp_path))
        torch.testing.assert_close(gradients(learner), expected)
        learner.update(prepared_batch("discrete"))
        assert learner._accelerator.sync_gradients and learner.updates_done == 1
        forget_accelerator()


def test_priorities_reach_replay_even_where_importance_weighs_nothing() -> None:
    """With an exponent of 0 every weight is 1, and what is drawn still follows the critics' errors."""
    (shard,) = make_shards(1, L, mode="prioritized")
    shard.push(pack([trajectory(i, L) for i in range(8)]))
    shard.commit()
    reader = ReplayReader([LocalShard(shard)], 4, seed=0, importance_exponent=0.0)
    obs_spec = {"from": ArraySpec((4,), "int16"), "pixels": ArraySpec((2, 2), "uint8")}
    learner = make_learner(obs_spec=obs_spec)
    learner._batches = reader
    learner.train(20)
    priorities = shard.selection.priorities(np.arange(8))
    assert len(set(priorities.tolist())) == 8 and np.isfinite(priorities).all(), "each has one of its own"


@pytest.mark.parametrize(("calls", "logged"), [((3, 17, 5), (1, 1, 1)), ((7, 7, 7), (1, 1, 1)), ((41, 20), (3, 1))])
def test_of_every_call_something_is_logged(calls: tuple[int, ...], logged: tuple[int, ...]) -> None:
    """Every 20th batch of all, by default; an epoch of fewer has a loss, too."""
    (shard,) = make_shards(1, L)
    shard.push(pack([trajectory(i, L) for i in range(8)]))
    shard.commit()
    obs_spec = {"from": ArraySpec((4,), "int16"), "pixels": ArraySpec((2, 2), "uint8")}
    learner = make_learner(obs_spec=obs_spec)
    learner._batches = ReplayReader([LocalShard(shard)], 4, seed=0)
    reports = [learner.train(num) for num in calls]
    assert tuple(report.logged for report in reports) == logged
    assert all(np.isfinite(report.metrics["Total Loss"]) for report in reports)


# --- mixed precision -------------------------------------------------------------------------------------------------


def dtypes_of(monkeypatch: pytest.MonkeyPatch, *methods: tuple[Any, str]) -> dict[str, set[torch.dtype]]:
    """method -> the dtypes of all tensors that it returns from now on."""
    seen: dict[str, set[torch.dtype]] = {name: set() for _, name in methods}

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            seen[name].update(x.dtype for x in (result if isinstance(result, tuple) else (result,)))
            return result

        return call

    for owner, name in methods:
        monkeypatch.setattr(owner, name, watched(name, getattr(owner, name)))
    return seen


@by_agent
@by_kind
@by_encoder
def test_only_the_layers_run_in_low_precision(
    agent: str, kind: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, targets, log-probabilities, losses, scans and everything that is kept stay in float32."""
    learner, batch = make_learner(agent, kind, TRAJ_ENCODERS[encoder], precision="bf16"), prepared_batch(kind)
    a, wide = learner.agent, {torch.float32}
    steps = (
        "td_target",
        "scalars",
        "returns",
        "judge",
        "critic_error",
        "advantage",
        "filter_weight",
        "actor_objective",
    )
    seen = dtypes_of(monkeypatch, *((a, name) for name in steps), (ActionDistribution, "log_prob"))
    layers = dtypes_of(monkeypatch, (a.policy.actor.base, "forward"), (a.critics, "_later_layers"))
    bins = dtypes_of(monkeypatch, *((a.critics.bins, x) for x in ("encode", "decode") if agent == "MultiTaskAgent"))
    scans = {"gru": (GRURecurrence, "apply"), "mamba": (SelectiveScan, "apply")}
    scan = dtypes_of(monkeypatch, *[scans[encoder]] if encoder in scans else [])
    for log in (False, True):
        metrics = learner.update(batch, log=log)
        assert {x.dtype for x in metrics.values()} == (wide if log else set())
    assert layers == {"forward": {torch.bfloat16}, "_later_layers": {torch.bfloat16}}, "autocast is on"
    for name, dtypes in (seen | bins | scan).items():
        assert dtypes == wide, name
    kept = [*a.state_dict().values(), *(p.grad for p in a.parameters() if p.grad is not None)]
    kept += [x for state in learner._optimizer.state_dict()["state"].values() for x in state.values()]
    assert {x.dtype for x in kept} == wide, "weights, target networks, statistics and the optimiser's moments"


# Eight bits of mantissa hold two digits and a half. A gradient has been through twice as many layers as a loss.
BF16_LOSS_RTOL, BF16_GRADIENT_RTOL = 0.01, 0.04


@by_agent
@by_kind
@by_encoder
def test_low_precision_gives_about_the_same_losses(agent: str, kind: str, encoder: str) -> None:
    results = []
    for precision in get_args(MixedPrecision)[:2]:
        # A filter without steps: no rounding of an advantage can turn a transition on or off.
        learner = make_learner(agent, kind, TRAJ_ENCODERS[encoder], precision=precision, fbc_filter_func=exp_filter)
        torch.manual_seed(1)
        metrics = learner.update(prepared_batch(kind), log=True)
        results.append([metrics[name].item() for name in ("Actor Loss", "Critic Loss", "Gradient Norm")])
        forget_accelerator()
    assert results[1] != results[0]
    np.testing.assert_allclose(results[1][:2], results[0][:2], rtol=BF16_LOSS_RTOL)
    np.testing.assert_allclose(results[1][2], results[0][2], rtol=BF16_GRADIENT_RTOL)


# --- what is logged --------------------------------------------------------------------------------------------------


@by_agent
def test_what_was_logged_stays_as_it_was(agent: str) -> None:
    """Means over updates are taken at the end of an epoch, when statistics that are kept in place have moved on."""
    learner = make_learner(agent)
    logged = learner.update(prepared_batch("discrete"), log=True)
    then = {name: value.clone() for name, value in logged.items()}
    for seed in range(3):
        learner.update(prepared_batch("discrete", seed))
    for name, value in logged.items():
        assert torch.equal(value, then[name]), name


@pytest.mark.parametrize(("batches_per_update", "log_interval"), [(1, 2), (2, 2), (3, 2), (3, 20), (20, 3)])
def test_accumulated_gradients_have_a_norm_too(batches_per_update: int, log_interval: int) -> None:
    """Whichever of an update's batches is the one that is logged, the norm is that of the last optimiser step."""
    learner = make_learner(batches_per_update=batches_per_update)
    batch = prepared_batch("discrete")
    logged = [learner.update(batch, log=number % log_interval == 0) for number in range(40)]
    assert learner.updates_done == 40 // batches_per_update
    means = fetch_means(logged[::log_interval])
    assert means["Gradient Norm"] > 0.0 and all(math.isfinite(value) for value in means.values())


def test_means_are_over_the_updates_that_have_the_number() -> None:
    one, three, five = (torch.tensor(x) for x in (1.0, 3.0, 5.0))
    assert fetch_means([{"a": one}, {"a": three, "b": five}, {"a": five}]) == {"a": 3.0, "b": 5.0}
    assert fetch_means([]) == {}


def test_extremes_are_over_all_updates() -> None:
    rows = [
        {"TD Target Min": torch.tensor(low), "TD Target Max": torch.tensor(high)} for low, high in ((-3, 2), (-1, 9))
    ]
    assert fetch_means(rows) == {"TD Target Min": -3.0, "TD Target Max": 9.0}
