"""Updates that are recorded compute what those do that are not: on a GPU as CUDA graphs, on a CPU called again."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import LENGTHS, OBS_SPEC, L, actor, build, every_critic, fill_padding, make_batch, tformer
from gpu.cases import AGENTS, ENCODERS, PlainRecorder, agent_spec, make_learner, on_devices, to
from gpu.test_on_devices import draw_nothing, forget_accelerator
from small_agents import small_agent_spec
from torch import Tensor, nn

from amago_ray.agent import Agent
from amago_ray.agent.losses import exp_filter
from amago_ray.agent.optimizers import AdamWRel
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.cuda_graphs import CannotRecord, CudaRecorder
from amago_ray.learner.graphed import MAX_GRAPHS, Gradients, GraphedUpdates, is_recordable
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.learner.provenance import NonFiniteUpdate
from amago_ray.nets.policy_outputs import TanhGaussian
from amago_ray.nets.traj_encoders import FFTrajEncoder, GRUTrajEncoder
from amago_ray.nets.tstep_encoders import FFTstepEncoder
from amago_ray.single_process import SingleProcess
from amago_ray.specs import ArraySpec

NEAR = {"cpu": 1e-5, "cuda": 2e-3}
UPDATES = 9  # the first is logged, and two lengths take turns: each is warmed up, recorded, and replayed


def recording(spec: AgentSpec, device: str, recorder: Any = None, **config: Any) -> Learner:
    forget_accelerator()
    torch.manual_seed(0)
    learner = make_learner(spec, device, cuda_graphs="never", **config)
    recorder = recorder or (CudaRecorder() if device == "cuda" else PlainRecorder())
    learner._graphed = learner._graphed_by(recorder)
    return learner


def plain(spec: AgentSpec, device: str, **config: Any) -> Learner:
    forget_accelerator()
    torch.manual_seed(0)
    return make_learner(spec, device, cuda_graphs="never", **config)


def batch_of(kind: str, seed: int, length: int = L, weighted: bool = False) -> TrainingBatch:
    """One whose sequences are no longer than `length`, padded to it."""
    batch = make_batch(kind, seed)
    cut = {name: getattr(batch, name)[:, :length] for name in ("actions", "rewards", "terminated", "mask")}
    cut |= {name: getattr(batch, name)[:, : length + 1] for name in ("rl2", "time_idx")}
    cut["obs"] = {name: x[:, : length + 1] for name, x in batch.obs.items()}
    weight = torch.rand(len(LENGTHS)) + 0.5 if weighted else None
    rows = cut["mask"].flatten().nonzero().squeeze(1)
    return dataclasses.replace(batch, **cut, real_rows=rows, weight=weight)


def assert_equal_learners(actual: Learner, expected: Learner, rtol: float) -> None:
    given = expected.agent.state_dict()
    for name, value in actual.agent.state_dict().items():
        torch.testing.assert_close(
            value.float(), given[name].float(), rtol=rtol, atol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


@on_devices
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_the_same_weights_after_many_updates(agent: str, encoder: str, kind: str, device: str) -> None:
    """Of batches of several lengths, with priorities, statistics of values and inputs, and target networks."""
    spec = agent_spec(agent, kind, ENCODERS[encoder], partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=12))
    learners = recording(spec, device), plain(spec, device)
    learners[1].agent.load_state_dict(learners[0].agent.state_dict())
    for learner in learners:
        draw_nothing(learner.agent)
    for number in range(UPDATES):
        batch = batch_of(kind, seed=number, length=(L, 5)[number % 2], weighted=True)
        priorities = []
        for learner in learners:
            learner.update(to(batch, device), log=number == 0)
            priorities.append(learner._priority)
        torch.testing.assert_close(*priorities, rtol=NEAR[device], atol=NEAR[device])
        norms = [learner._gradient_norm.clone() for learner in learners]
        torch.testing.assert_close(*norms, rtol=NEAR[device], atol=NEAR[device])
    assert_equal_learners(*learners, rtol=NEAR[device])
    graphed = learners[0]._graphed
    assert graphed is not None and not graphed.failed and len(graphed._recordings) == 2
    assert learners[0].updates_done == UPDATES


@on_devices
@pytest.mark.parametrize(
    "optimizer_type",
    [
        partial(torch.optim.Adam, betas=(0.5, 0.9)),
        partial(torch.optim.SGD, momentum=0.9),
        torch.optim.RMSprop,
        partial(AdamWRel, reset_interval=4),
    ],
    ids=lambda made: getattr(made, "func", made).__name__,
)
def test_with_another_optimiser(optimizer_type: Any, device: str) -> None:
    """In the graph or after it."""
    spec = agent_spec(kind="continuous", optimizer_type=optimizer_type)
    learners = recording(spec, device), plain(spec, device)
    learners[1].agent.load_state_dict(learners[0].agent.state_dict())
    for learner in learners:
        draw_nothing(learner.agent)
        for number in range(UPDATES):
            learner.update(to(batch_of("continuous", number), device))
    assert_equal_learners(*learners, rtol=NEAR[device])
    assert learners[0]._step_in_graph == (getattr(optimizer_type, "func", None) is torch.optim.Adam)
    graphed = learners[0]._graphed
    assert graphed is not None and not graphed.failed and graphed._recordings


class TwoRates(Agent):
    """Critics learn ten times as fast, and their weights do not decay."""

    def init_optimizer(self, learning_rate: float, l2_coeff: float) -> torch.optim.Optimizer:
        critics = set(self.critics.parameters())
        others = [p for p in self.trainable_params if p not in critics]
        groups = [
            {"params": others, "weight_decay": l2_coeff},
            {"params": list(critics), "lr": 10 * learning_rate, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


@on_devices
def test_groups_have_rates_of_their_own(device: str) -> None:
    spec = agent_spec()
    spec = dataclasses.replace(spec, agent_type=partial(TwoRates, **spec.agent_type.keywords))
    learners = [make(spec, device, lr_warmup_steps=7, l2_coeff=0.1) for make in (recording, plain)]
    learners[1].agent.load_state_dict(learners[0].agent.state_dict())
    for learner in learners:
        draw_nothing(learner.agent)
        for number in range(UPDATES):
            learner.update(to(batch_of("discrete", number), device))
    assert learners[0]._step_in_graph
    assert_equal_learners(*learners, rtol=NEAR[device])


def test_a_step_that_somebody_listens_to_is_not_recorded() -> None:
    def listened(params: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=True)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    steps: list[int] = []
    learner = recording(agent_spec(optimizer_type=listened), "cpu")
    for number in range(5):
        learner.update(batch_of("discrete", number))
    assert not learner._step_in_graph and len(steps) == 5


@on_devices
def test_learning_rates_are_those_of_now(device: str) -> None:
    """In a recording, too: it was made while they were above 0. And they are saved as the numbers that they are."""
    learner = recording(agent_spec(), device, lr_end_factor=0.0, last_update=6)
    moved = []
    for number in range(9):
        before = torch.cat([p.detach().flatten() for p in learner.agent.policy.parameters()])
        learner.update(to(batch_of("discrete", number), device))
        after = torch.cat([p.detach().flatten() for p in learner.agent.policy.parameters()])
        moved.append(bool((before != after).any()))
    assert moved == [True] * 6 + [False] * 3
    (group,) = learner._optimizer.state_dict()["param_groups"]
    assert group["lr"] == 0.0 and type(group["lr"]) is float and not group["capturable"]


@on_devices
def test_what_is_drawn_at_random_is_drawn_anew(device: str) -> None:
    """Dropout, sampled actions and the critics of targets: no two replays on one batch have the same gradient."""
    encoder = partial(tformer, dropout_ff=0.3, dropout_emb=0.3)
    learner = recording(agent_spec(kind="continuous", encoder=encoder), device, grad_clip=1e9, learning_rate=0.0)
    assert learner._graphed is not None
    batch, norms = to(batch_of("continuous", 0), device), []
    for _ in range(8):
        norms.append(float(learner._graphed(batch).norm))
    assert len(set(norms)) == len(norms)


@on_devices
def test_a_replay_never_waits(device: str) -> None:
    learner = recording(agent_spec(), device)
    batches = [to(batch_of("discrete", seed), device) for seed in range(4)]
    for batch in batches[:3]:
        learner.update(batch)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        learner.update(batches[3])
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert learner.updates_done == 4


@on_devices
def test_a_learner_goes_on_from_a_state_with_its_recordings(tmp_path: Any, device: str) -> None:
    """Tensors stay in their places when weights are loaded, and no gradients are saved that are none."""
    spec = agent_spec()
    one, other = recording(spec, device), plain(spec, device)
    other.agent.load_state_dict(one.agent.state_dict())
    for learner in (one, other):
        draw_nothing(learner.agent)
        for number in range(3):
            learner.update(to(batch_of("discrete", number), device))
    one.save_state(str(tmp_path))
    assert not list(tmp_path.glob("gradients*"))
    for learner in (one, other):
        learner.load_state(str(tmp_path))
        for number in range(3, 6):
            learner.update(to(batch_of("discrete", number), device))
    assert_equal_learners(one, other, rtol=NEAR[device])


@on_devices
def test_a_loss_that_is_no_number_is_not_made(device: str) -> None:
    learner = recording(agent_spec(), device)
    for number in range(3):
        learner.update(to(batch_of("discrete", number), device))
    before = {name: x.clone() for name, x in learner.agent.policy.named_parameters()}
    bad = batch_of("discrete", 3)
    learner.update(to(dataclasses.replace(bad, rewards=bad.rewards.masked_fill(bad.mask, torch.inf)), device))
    with pytest.raises(NonFiniteUpdate, match="overflows or is not a number"):
        learner._check_finite()
    for name, value in learner.agent.policy.named_parameters():
        assert torch.equal(value, before[name]), name


class Refusing(PlainRecorder):
    def record(self, function: Any) -> Any:
        raise CannotRecord("operation not permitted when stream is capturing\nand more")


def test_a_recording_that_fails_is_told_once_and_updates_go_on() -> None:
    spec = agent_spec()
    learners = recording(spec, "cpu", Refusing()), plain(spec, "cpu")
    learners[1].agent.load_state_dict(learners[0].agent.state_dict())
    for learner in learners:
        draw_nothing(learner.agent)
    with pytest.warns(UserWarning, match="go on without CUDA graphs: operation not permitted") as told:
        for number in range(5):
            for learner in learners:
                learner.update(batch_of("discrete", number))
    assert len([w for w in told if "CUDA graphs" in str(w.message)]) == 1 and "and more" not in str(told[0].message)
    assert_equal_learners(*learners, rtol=1e-5)


class Centred(torch.optim.AdamW):
    """An optimiser that puts tensors of its own in the place of gradients, and knows no `set_to_none`."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.dim() > 1:
                    parameter.grad = parameter.grad - parameter.grad.mean()
        return super().step(closure)

    def zero_grad(self) -> None:
        super().zero_grad()


class HoldsOn(Agent):
    """Keeps what one update built, as a user's own metric may: autograd's graph over all parameters stays alive."""

    held: Tensor | None = None

    def extra_loss(self, real: Any, batch: TrainingBatch) -> Tensor | None:
        if self.held is None:
            self.held = real.state.mean() + real.dist.probs.mean()
        return None


@on_devices
@pytest.mark.parametrize("logged", [False, True])
def test_who_holds_on_to_an_update_prevents_no_recording(logged: bool, device: str) -> None:
    learner = recording(dataclasses.replace(agent_spec(), agent_type=HoldsOn), device)
    for number in range(4):
        learner.update(to(batch_of("discrete", number), device), log=logged and number == 0)
    assert learner._graphed is not None and not learner._graphed.failed
    assert any(made.made for made in learner._graphed._recordings.values())


@on_devices
def test_an_optimiser_that_replaces_gradients_learns_as_it_would(device: str) -> None:
    spec = agent_spec(optimizer_type=Centred)
    learners = recording(spec, device), plain(spec, device)
    learners[1].agent.load_state_dict(learners[0].agent.state_dict())
    for learner in learners:
        draw_nothing(learner.agent)
    with pytest.warns(UserWarning, match="without CUDA graphs: the optimiser replaces gradients"):
        for number in range(6):
            for learner in learners:
                learner.update(to(batch_of("discrete", number), device))
    assert_equal_learners(*learners, rtol=NEAR[device])


class Looking(Agent):
    """Reads a number of the device in every update, as code that was written on a CPU does."""

    def extra_loss(self, real: Any, batch: TrainingBatch) -> Tensor:
        return real.state.square().mean() * (1.0 if float(real.state.sum().detach()) > -1e9 else 2.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_what_cannot_be_recorded_is_computed_as_before() -> None:
    """With dropout and sampled actions: a spoiled recording leaves neither stream nor random numbers behind."""
    spec = agent_spec(kind="continuous", encoder=partial(tformer, dropout_ff=0.3))
    spec = dataclasses.replace(spec, agent_type=partial(Looking, **spec.agent_type.keywords))
    learner, stream = recording(spec, "cuda"), torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        for number in range(6):
            learner.update(to(batch_of("continuous", number), "cuda"))
    assert torch.cuda.current_stream() == stream and learner.updates_done == 6
    learner._check_finite()


def test_only_so_many_shapes_are_recorded() -> None:
    recorder = PlainRecorder()
    graphed = GraphedUpdates(
        lambda batch, log=False: Gradients({}, None, torch.ones(())), agent_spec().build(), recorder
    )
    for _ in range(3):
        for size in range(1, MAX_GRAPHS + 4):
            batch = batch_of("discrete", 0)
            obs = {"x": torch.zeros(size, 3)}
            graphed(dataclasses.replace(batch, obs=obs))
    assert recorder.recorded == len(graphed._recordings) == MAX_GRAPHS


def test_lengths_of_batches_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(agent_spec(), max_seq_len=100)
    learner = recording(spec, "cpu")
    seen: dict[int, int] = {}
    monkeypatch.setattr("amago_ray.learner.learner.training_batch", lambda *args: args[-2])

    class Drawn:
        def __init__(self, longest: int):
            self.lengths = torch.tensor([1, longest]).numpy()

    for longest in range(1, 101):
        seen[longest] = learner.prepare(Drawn(longest))  # type: ignore[arg-type, assignment]
        assert longest <= seen[longest] <= min(longest + 12, 100)
    assert len(set(seen.values())) == 8
    learner._graphed = None
    assert learner.prepare(Drawn(7)) is None  # type: ignore[arg-type]


def test_nothing_goes_to_the_device_while_a_recording_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads ahead waits: what it copies could else end up in the graph, or spoil it."""
    held: list[bool] = []

    class Watching(PlainRecorder):
        def record(self, function: Any) -> Any:
            held.append(graphed.recording.locked())
            return super().record(function)

    learner = recording(agent_spec(), "cpu", Watching())
    graphed = learner._graphed
    assert graphed is not None
    for number in range(3):
        learner.update(batch_of("discrete", number))
    assert held == [True] and not graphed.recording.locked()
    monkeypatch.setattr(
        "amago_ray.learner.learner.training_batch", lambda *_, **__: held.append(graphed.recording.locked())
    )
    learner.prepare(SimpleNamespace(lengths=np.array([3])))  # type: ignore[arg-type]
    assert held == [True, True] and not graphed.recording.locked()


class Lucky(gym.Env):
    """Rollouts of 2 to 9 steps; the reward is the action."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 10))
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return np.zeros(2, np.float32), float(action), self.left == 0, False, {}


@on_devices
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_learner_trains_with_recordings(device: str, precision: str) -> None:
    """On what is read ahead from replay, of few lengths; priorities, metrics and weights are what they should be."""
    forget_accelerator()
    make_env = Lucky
    spec = small_agent_spec(make_env, partial(FFTrajEncoder, d_model=8), 8, width=8)
    ring = SingleProcess(make_env, spec, num_envs=4, batch_size=16)
    ring.epoch(40, 0)
    forget_accelerator()
    config = LearnerConfig(device=device, mixed_precision=precision, lr_warmup_steps=20)
    learner = Learner(config, spec, ring.learner._batches)
    recorder = CudaRecorder() if device == "cuda" else PlainRecorder()
    learner._graphed = learner._graphed_by(recorder)
    before = {name: x.detach().clone() for name, x in learner.agent.named_parameters()}
    report = learner.train(30)
    assert report.updates == learner.updates_done == 30
    assert not learner._graphed.failed and learner._graphed._recordings
    assert all(np.isfinite(value) for value in report.metrics.values())
    moved = [
        name for name, x in learner.agent.named_parameters() if x.requires_grad and not torch.equal(x, before[name])
    ]
    assert any(name.startswith("critics") for name in moved) and any(name.startswith("policy") for name in moved)


class OwnEncoder(FFTstepEncoder):
    """As a user writes one."""


@pytest.mark.parametrize(
    ("config", "recordable"),
    [
        ({}, True),
        ({"cuda_graphs": "never"}, False),
        ({"packed": True}, False),
        ({"packed": "auto"}, True),
        ({"micro_batch_size": 2}, False),
        ({"activation_checkpointing": True}, False),
        ({"batches_per_update": 2}, False),
        ({"mixed_precision": "fp16"}, False),
        ({"mixed_precision": "bf16", "cuda_graphs": "always"}, True),
    ],
)
def test_what_can_be_recorded(config: dict[str, Any], recordable: bool) -> None:
    assert is_recordable(LearnerConfig(**config), agent_spec().build()) == recordable


def test_code_of_others_is_recorded_on_demand() -> None:
    own = agent_spec(tstep_encoder=partial(OwnEncoder, n_layers=1, d_hidden=16, d_output=12)).build()
    filtered = agent_spec(fbc_filter_func=lambda advantage: advantage.sigmoid()).build()
    output = partial(TanhGaussian, std_activation=lambda raw, low, high: raw.sigmoid() + low)
    activated = agent_spec(kind="continuous", actor_type=partial(actor, policy_output_type=output)).build()
    hooked = agent_spec().build()
    hooked.extra = nn.Linear(2, 2)
    assert is_recordable(LearnerConfig(), hooked)
    assert is_recordable(LearnerConfig(), agent_spec(optimizer_type=Centred).build())
    assert is_recordable(LearnerConfig(), agent_spec(fbc_filter_func=partial(exp_filter, beta=2.0)).build())
    for agent in (own, filtered, activated):
        assert not is_recordable(LearnerConfig(), agent)
        assert is_recordable(LearnerConfig(cuda_graphs="always"), agent)
    dropping = agent_spec(encoder=partial(tformer, dropout_attn=0.1)).build()
    assert not is_recordable(LearnerConfig(cuda_graphs="always"), dropping)
    masked = agent_spec(obs_spec={**OBS_SPEC, "legal": ArraySpec((4,), "int8")}, action_mask_key="legal").build()
    assert not is_recordable(LearnerConfig(cuda_graphs="always"), masked)


def test_packed_batches_are_as_long_as_they_are() -> None:
    """Also for a learner that compiles: there a longer one would put rows where others belong."""
    ring = SingleProcess(Lucky, small_agent_spec(Lucky, partial(FFTrajEncoder, d_model=8), 64, width=8), num_envs=4)
    ring.epoch(40, 0)
    reader, spec = ring.learner._batches, ring.spec
    learner = Learner(LearnerConfig(compile=True, packed=True), spec, reader)
    batch = next(iter(reader.batches(1, 0)))
    prepared = learner.prepare(batch)
    assert prepared.mask.shape[1] == batch.lengths.max()
    assert torch.equal(prepared.mask.sum(dim=1), torch.from_numpy(batch.lengths))
    assert np.isfinite(learner.train(3).metrics["Total Loss"])


def test_batches_are_rounded_up_for_what_is_compiled_alone() -> None:
    for encoder, rounded in ((partial(GRUTrajEncoder, d_hidden=8, n_layers=1, d_output=8), False), (tformer, True)):
        ring = SingleProcess(Lucky, small_agent_spec(Lucky, encoder, 64, width=8), num_envs=4)
        ring.epoch(37, 0)
        batch = next(iter(ring.learner._batches.batches(1, 0)))
        longest = int(batch.lengths.max())
        assert longest % 8, "else there is nothing to see"
        for compiles in (False, True):
            learner = Learner(LearnerConfig(compile=compiles), ring.spec, ring.learner._batches)
            expected = -(-longest // 8) * 8 if rounded and compiles else longest
            assert learner.prepare(batch).mask.shape[1] == expected


def test_padding_counts_for_nothing_where_heads_compute_on_it() -> None:
    """Whatever is in it: loss, gradient, statistics, priorities, what is logged. Nor do rows that fill it up."""
    results: list[tuple[Tensor, ...]] = []
    for value, every_row, filled in ((0.0, False, 0), (0.0, True, 0), (7.0, True, 0), (7.0, False, 1), (7.0, False, 9)):
        agent = build("continuous").train()
        draw_nothing(agent)
        agent.td_ensemble = partial(every_critic, agent)  # type: ignore[method-assign]
        batch = fill_padding(make_batch("continuous"), value)
        real = batch.mask.flatten()
        rows = torch.cat((rows := real.nonzero().squeeze(1), rows[:filled]))
        weight = torch.arange(1.0, 1.0 + len(batch.mask))
        batch = dataclasses.replace(batch, every_row=every_row, real_rows=rows, filled=filled, weight=weight)
        loss, priority = (out := agent(batch, log=True)).loss, out.priority
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in agent.parameters() if p.grad is not None])
        mean = batch.mean(batch.real(batch.rewards))
        logged = torch.stack([x for name, x in out.metrics.items() if "Entropy" not in name])  # that is of samples
        results.append((loss.detach(), gradient, agent.popart.mu, agent.popart.variance, mean, priority, logged))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
