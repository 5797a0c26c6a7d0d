"""Sequences laid end to end give the losses and gradients of the same sequences padded."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from ring_cases import make_shards, sample, trajectory

from amago_ray.agent import Agent, MultiTaskAgent
from amago_ray.agent.spec import AgentSpec
from amago_ray.learner.batches import training_batch
from amago_ray.messages import Batch, Trajectory, TrajectoryId
from amago_ray.nets import sizes
from amago_ray.nets.actors import Actor
from amago_ray.nets.attention import SlidingSinkAttention
from amago_ray.nets.critics import NCritics, NCriticsTwoHot
from amago_ray.nets.kernels import use_kernels
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.traj_encoders import (
    FFTrajEncoder,
    GRUTrajEncoder,
    IdentityTrajEncoder,
    MambaTrajEncoder,
    TformerTrajEncoder,
    TrajEncoder,
)
from amago_ray.nets.transformer import Transformer
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder
from amago_ray.replay.client import LocalShard, ReplayReader
from amago_ray.replay.storage.trajectory_pack import pack
from amago_ray.specs import ActionSpec, ArraySpec

DISCRETE = ActionSpec("discrete", (), "int64", 3, (3,))
CONTINUOUS = ActionSpec("continuous", (2,), "float32", 2)
VECTOR = {"vector": ArraySpec((5,), "float32"), "kind": ArraySpec((), "uint8", (4,))}
IMAGE = {"image": ArraySpec((36, 36, 3), "uint8")}


@pytest.fixture(autouse=True)
def coarse_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sizes are filled up, that is more than a row or two."""
    monkeypatch.setattr(sizes, "DIGITS", 2)


class SelfMade(TrajEncoder):
    """A user's encoder, which knows of padded sequences alone: running means over time."""

    @property
    def emb_dim(self) -> int:
        return self.tstep_dim

    def forward(self, seq_BLD: torch.Tensor, time_idx_BL: torch.Tensor) -> torch.Tensor:
        return seq_BLD.cumsum(dim=1) / torch.arange(1, seq_BLD.shape[1] + 1).view(1, -1, 1)


ENCODERS = {
    "identity": IdentityTrajEncoder,
    "feed-forward": partial(FFTrajEncoder, d_model=16),
    "gru": partial(GRUTrajEncoder, d_hidden=16, d_output=16),
    "transformer": partial(TformerTrajEncoder, d_model=16, n_heads=2, d_ff=32, n_layers=2),
    "rope": partial(TformerTrajEncoder, d_model=16, n_heads=2, d_ff=32, n_layers=1, pos_emb="rope"),
    "learnable": partial(TformerTrajEncoder, d_model=16, n_heads=2, d_ff=32, n_layers=1, pos_emb="learnable"),
    "sinks": partial(
        TformerTrajEncoder,
        d_model=16,
        n_heads=2,
        d_ff=32,
        n_layers=1,
        attention_type=partial(SlidingSinkAttention, window_size=3, sink_size=1, logit_clip=5.0),
    ),
    "mamba": partial(MambaTrajEncoder, d_model=16, d_state=4, n_layers=2),
    "self-made": SelfMade,
}
AGENTS = {
    "Agent": partial(Agent, critic_type=partial(NCritics, d_hidden=16)),
    "MultiTaskAgent": partial(
        MultiTaskAgent, critic_type=partial(NCriticsTwoHot, d_hidden=16, min_return=-20.0, max_return=20.0)
    ),
}


def made_up_batch(obs_spec: dict[str, ArraySpec], action_spec: ActionSpec, num: int = 7) -> Batch:
    rng = np.random.default_rng(0)
    (shard,) = make_shards(1, max_seq_len=12, padded_sampling="both")
    for i in range(20):
        rows = int(rng.integers(3, 20))
        columns = {}
        for name, spec in obs_spec.items():
            high = spec.nvec[0] if spec.nvec else 256
            integers = rng.integers(high, size=(rows, *spec.shape))
            columns[f"obs.{name}"] = (rng.normal(size=integers.shape) if spec.dtype == "float32" else integers).astype(
                spec.dtype
            )
        action = rng.integers(3, size=rows) if action_spec.nvec else rng.uniform(-0.9, 0.9, (rows, 2))
        columns |= {
            "action": action.astype(action_spec.dtype),
            "reward": rng.normal(size=rows).astype(np.float32),
            "terminated": np.arange(rows) == rows - 1,
        }
        shard.push(pack([Trajectory(TrajectoryId(0, 0, i), "made up", columns, 0, False, 0)]))
    shard.commit()
    (batch,) = ReplayReader([LocalShard(shard)], num, seed=0).batches(1, first=0)
    assert len(set(batch.lengths.tolist())) > 2
    return batch


def losses_and_gradients(
    agent: Agent, batch: Batch, action_spec: ActionSpec, packed: bool, few_sizes: bool = False
) -> tuple[list, dict]:
    torch.manual_seed(0)  # of the actions drawn for continuous values
    agent.zero_grad()
    out = agent(training_batch(batch, action_spec, torch.device("cpu"), packed, few_sizes=few_sizes))
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None}
    return [x.item() for x in (out.loss, out.actor_loss, out.critic_loss)], gradients


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("agent_name", AGENTS)
@pytest.mark.parametrize("action_spec", [DISCRETE, CONTINUOUS], ids=lambda spec: spec.kind)
def test_packed_and_padded_losses_are_the_same(encoder: str, agent_name: str, action_spec: ActionSpec) -> None:
    tstep = partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=16)
    check(AgentSpec(VECTOR, action_spec, 12, tstep, ENCODERS[encoder], small(agent_name), seed=0))


@pytest.mark.parametrize("agent_name", AGENTS)
def test_action_masks(agent_name: str) -> None:
    """Random ones, of which an eighth allows nothing; those of states, and of next states."""
    tstep = partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=16)
    obs_spec = VECTOR | {"legal": ArraySpec((3,), "int8", (2, 2, 2))}
    check(AgentSpec(obs_spec, DISCRETE, 12, tstep, ENCODERS["gru"], small(agent_name), 0, action_mask_key="legal"))


@pytest.mark.processes
@pytest.mark.parametrize("width", [16, 32])
def test_attention_by_the_kernel(width: int) -> None:
    """Which takes packed sequences, with what is filled up, as they lie."""
    tstep = partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=16)
    encoder = partial(TformerTrajEncoder, d_model=2 * width, n_heads=2, d_ff=32, n_layers=2)
    check(AgentSpec(VECTOR, DISCRETE, 12, tstep, encoder, small("Agent"), seed=0), kernels=True)


def test_images() -> None:
    check(AgentSpec(IMAGE, DISCRETE, 12, CNNTstepEncoder, ENCODERS["gru"], small("Agent"), seed=0), num=3)


def small(agent_name: str) -> partial:
    return partial(AGENTS[agent_name], actor_type=partial(Actor, d_hidden=16), num_critics=2, n_step=3)


def check(spec: AgentSpec, num: int = 7, kernels: bool = False) -> None:
    batch = made_up_batch(dict(spec.obs_spec), spec.action_spec, num)
    agent = spec.build().eval()
    if kernels:
        use_kernels(agent)
        assert all(module.attends_packed for module in agent.modules() if isinstance(module, Transformer))
    padded, padded_gradients = losses_and_gradients(agent, batch, spec.action_spec, packed=False)
    # What is filled up draws actions of its own, where actions are drawn, and all others are other ones then.
    fillings = (False, True) if agent.exact_expectation else (False,)
    for few_sizes in fillings:
        packed, packed_gradients = losses_and_gradients(agent, batch, spec.action_spec, True, few_sizes)
        np.testing.assert_allclose(packed, padded, rtol=1e-5, atol=1e-6)
        assert packed_gradients.keys() == padded_gradients.keys()
        for name, gradient in padded_gradients.items():
            torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    agent.train()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    statistics = []
    for layout, few_sizes in ((False, False), *((True, few_sizes) for few_sizes in fillings)):
        agent.load_state_dict(before)
        agent(training_batch(batch, spec.action_spec, torch.device("cpu"), layout, few_sizes=few_sizes))
        statistics.append({name: v.clone() for name, v in agent.state_dict().items() if "norm" in name})
    for other in statistics[1:]:
        for name, value in statistics[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_values_of_packed_batches() -> None:
    tstep = partial(FFTstepEncoder, n_layers=1, d_hidden=16, d_output=16)
    spec = AgentSpec(VECTOR, DISCRETE, 12, tstep, ENCODERS["gru"], small("Agent"), seed=0)
    batch, agent = made_up_batch(VECTOR, DISCRETE), spec.build()
    layouts = [agent.get_values(training_batch(batch, DISCRETE, torch.device("cpu"), packed)) for packed in (0, 1)]
    for name, values in layouts[0].items():
        torch.testing.assert_close(layouts[1][name], values, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)


def test_packing_there_and_back() -> None:
    lengths = np.array([2, 5, 1])
    packing = Packing.of(lengths)
    x = torch.arange(16.0).view(1, 8, 2)
    padded = packing.pad(x)
    assert padded.shape == (3, 5, 2) and padded[0, 2:].eq(0).all() and padded[2, 1:].eq(0).all()
    assert torch.equal(packing.pack(padded), x)
    assert packing.start_N.tolist() == [0, 2, 3, 4, 5]


def test_packing_filled_up() -> None:
    """To 2 binary digits: 67 rows to 96, 64 transitions are enough; the rows that fill up are nobody's."""
    packing = Packing.of(np.array([40, 26, 1]), fullest=41)
    assert packing.filled_rows == 29 and packing.bounds.tolist() == [0, 40, 66, 67, 76, 86, 96]
    assert len(packing.start_N) == 64
    full = Packing.of(np.array([41, 41, 41]), fullest=41)  # without padding there is nothing to be filled up to
    assert full.filled_rows == 0 and len(full.start_N) == 120
    assert full.bounds.tolist() == [0, 41, 82, 123, 123, 123, 123]
    x = torch.randn(1, 96, 2)
    x[0, 67:] = torch.nan
    padded = packing.pad(x)
    assert padded.shape == (3, 40, 2) and padded.isfinite().all()
    assert torch.equal(packing.pack(padded)[:, :67], x[:, :67]) and packing.pack(padded).shape == x.shape


def test_made_up_batches_are_filled_up() -> None:
    """Else the losses above would say nothing of it."""
    batch = made_up_batch(VECTOR, DISCRETE)
    packed = training_batch(batch, DISCRETE, torch.device("cpu"), packed=True, few_sizes=True)
    assert packed.packing is not None and packed.packing.filled_rows > 0
    rows = packed.packing.filled_rows + int(batch.lengths.sum()) + len(batch.lengths)
    assert packed.time_idx.shape == packed.obs["vector"].shape[:2] == (1, rows)
    assert packed.timestep_mask is not None and packed.timestep_mask.sum() == rows - packed.packing.filled_rows
    assert packed.before(packed.time_idx).shape[1] == packed.num_real + packed.filled


def test_packed_layout_holds_no_padding() -> None:
    batch = made_up_batch(VECTOR, DISCRETE)
    packed = training_batch(batch, DISCRETE, torch.device("cpu"), packed=True)
    assert packed.obs["vector"].shape == (1, (batch.lengths + 1).sum(), 5)
    assert packed.timestep_mask is None and packed.rewards.shape == packed.mask.shape


def test_bucketed_batches_have_less_padding_and_the_same_sequences() -> None:
    (shard,) = make_shards(1, max_seq_len=30)
    shard.push(pack([trajectory(i, length=1 + i % 29) for i in range(200)]))
    shard.commit()
    layouts = []
    for bucketed in (False, True):
        reader = ReplayReader([LocalShard(shard)], 8, seed=0, batches_per_request=8, bucketed=bucketed)
        layouts.append(list(reader.batches(64, first=0)))
    waste = [np.mean([1 - b.lengths.mean() / b.lengths.max() for b in batches]) for batches in layouts]
    assert waste[1] < 0.5 * waste[0]
    drawn = [np.sort(np.concatenate([b.gather("ids")[:, 2] for b in batches])) for batches in layouts]
    np.testing.assert_array_equal(*drawn)
    shortest_first = [b.lengths.mean() for b in layouts[1]]
    assert shortest_first != sorted(shortest_first)
    assert sample(shard, 1).source == 0
