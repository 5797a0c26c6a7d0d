"""A batch in pieces: losses, gradients, statistics, metrics and priorities are those of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import ACTION_SPECS, B, L, build, every_critic, ff, gru, make_batch, tformer
from torch import Tensor

from amago_ray.agent import Agent, MultiTaskAgent, micro_batches
from amago_ray.agent.micro_batches import cut, joined, ready
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.transitions import AgentLoss
from amago_ray.nets import sizes
from amago_ray.nets.distributions import ActionDistribution
from amago_ray.nets.packed_sequences import Packing
from amago_ray.nets.recomputation import held_statistics
from amago_ray.nets.traj_encoders import MambaTrajEncoder

ENCODERS = {
    "feed-forward": ff,
    "gru": gru,
    "transformer": tformer,
    "mamba": partial(MambaTrajEncoder, d_model=16, d_state=4, n_layers=1),
}
SIZES = (1, 2, 3)  # of 4 sequences, of 8, 3, 1 and 5 transitions: equal pieces, and one that is left over


def means(dist: ActionDistribution, num: int, differentiable: bool) -> Tensor:
    """In place of `Agent.draw`, which draws other actions for every piece."""
    return dist.mean.unsqueeze(0).expand(num, *dist.mean.shape)


def made(kind: str, encoder: Callable[..., Any], agent_type: type[Agent], **settings: Any) -> Agent:
    agent = build(kind, encoder, agent_type, **settings).train()
    agent.td_ensemble = partial(every_critic, agent)  # type: ignore[method-assign]
    agent.draw = means  # type: ignore[method-assign]
    return agent


def batch_of(kind: str, packed: bool = False) -> tuple[TrainingBatch, np.ndarray]:
    """A batch and the lengths of its sequences."""
    batch = make_batch(kind)
    lengths = batch.mask.sum(dim=1).numpy()
    batch = dataclasses.replace(batch, real_rows=batch.mask.flatten().nonzero().squeeze(1))
    if not packed:
        return batch, lengths
    packing = Packing.of(lengths + 1)
    laid_out = {name: packing.pack(getattr(batch, name)) for name in ("rl2", "time_idx")}
    obs = {name: packing.pack(x) for name, x in batch.obs.items()}
    return dataclasses.replace(batch, obs=obs, packing=packing, **laid_out), lengths


def learn(agent: Agent, batch: TrainingBatch) -> tuple[AgentLoss, dict[str, Tensor], dict[str, Tensor]]:
    """What a learner does with a batch: (sums and joined metrics, gradients, statistics)."""
    agent.zero_grad()
    pieces, losses = ready(agent, batch), []
    for piece in pieces:
        if batch.pieces:
            with held_statistics():
                losses.append(agent(piece, log=True))
        else:
            losses.append(agent(piece, log=True))
        losses[-1].loss.backward()
    metrics, priority = joined(batch, pieces, losses)
    loss = sum(x.loss for x in losses)
    gradients = {name: p.grad.clone() for name, p in agent.named_parameters() if p.grad is not None}
    buffers = {name: value.clone() for name, value in agent.named_buffers()}
    assert isinstance(loss, Tensor)
    return AgentLoss(loss, loss, loss, metrics, priority), gradients, buffers


def check(
    make: Callable[[], Agent], batch: TrainingBatch, lengths: np.ndarray, size: int, few_sizes: bool = False
) -> None:
    """few_sizes: of the pieces."""
    whole, gradients, buffers = learn(make(), batch)
    parts, its_gradients, its_buffers = learn(make(), cut(batch, lengths, size, few_sizes))
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-6, atol=1e-6)
    assert its_gradients.keys() == gradients.keys() and gradients
    # Float32 sums in another order: to a millionth of the largest entry.
    tolerance = 1e-6 * max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(its_gradients[name], gradient, rtol=0.0, atol=tolerance, msg=name)
    for name, value in buffers.items():
        torch.testing.assert_close(its_buffers[name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert parts.metrics.keys() == whole.metrics.keys()
    for name, metric in whole.metrics.items():
        if "Entropy" in name and not make().exact_expectation:
            continue  # an estimate from a sample
        torch.testing.assert_close(parts.metrics[name], metric, rtol=1e-5, atol=1e-5, msg=name)
    if whole.priority is not None:
        torch.testing.assert_close(parts.priority, whole.priority, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("agent_type", [Agent, MultiTaskAgent])
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_gradient_is_that_of_the_whole_batch(
    encoder: str, agent_type: type[Agent], kind: str, packed: bool
) -> None:
    batch, lengths = batch_of(kind, packed)
    check(lambda: made(kind, ENCODERS[encoder], agent_type, n_step=3), batch, lengths, size=3)


@pytest.mark.parametrize("size", SIZES)
def test_pieces_of_any_size(size: int) -> None:
    batch, lengths = batch_of("discrete")
    check(lambda: made("discrete", tformer, Agent), batch, lengths, size)


@pytest.mark.parametrize("size", SIZES)
def test_pieces_of_few_sizes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths and rows that only fill up change nothing."""
    monkeypatch.setattr(sizes, "DIGITS", 2)
    monkeypatch.setattr(micro_batches, "LENGTHS", 2)
    batch, lengths = batch_of("discrete")
    pieces = cut(batch, lengths, size, few_sizes=True).pieces
    assert any(piece.filled for piece in pieces) and {piece.mask.shape[1] for piece in pieces} <= {L // 2, L}
    for piece, exact in zip(pieces, cut(batch, lengths, size).pieces, strict=True):
        assert piece.num_real == exact.num_real == len(exact.real(exact.rewards).squeeze(0))
    for agent_type in (Agent, Choosy):
        check(lambda of=agent_type: made("discrete", tformer, of), batch, lengths, size, few_sizes=True)


class Choosy(Agent):
    """Counts some transitions for the actor, others for the critics, and of one sequence none; adds to the loss."""

    def actor_mask(self, batch: TrainingBatch) -> Tensor:
        return batch.rewards > 0.0

    def critic_mask(self, batch: TrainingBatch) -> Tensor:
        late = batch.unpacked(batch.time_idx)[:, :-1] >= 2
        return batch.terminated.bool() | (batch.rewards > 1.0) | late

    def extra_loss(self, real: Any, batch: TrainingBatch) -> Tensor:
        return batch.mean(real.state.square())


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_each_piece_weighs_as_many_transitions_as_count(packed: bool) -> None:
    batch, lengths = batch_of("discrete", packed)
    counted = [(Choosy.actor_mask(None, batch) & batch.mask)[b].sum().item() for b in range(B)]
    assert len(set(counted)) > 2, "a mean of means would be another number"
    check(lambda: made("discrete", gru, Choosy), batch, lengths, size=1)


def test_a_mask_is_the_same_in_either_layout() -> None:
    losses, pieces = [], []
    for packed in (False, True):
        batch, lengths = batch_of("discrete", packed)
        assert batch.unpacked(batch.time_idx).shape == (B, L + 1)
        torch.manual_seed(1)
        agent = made("discrete", gru, Choosy).eval()
        losses.append(agent(batch).critic_loss.item())
        pieces.append([Choosy.critic_mask(None, x) & x.mask for x in cut(batch, lengths, 1).pieces])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert all(torch.equal(*two) for two in zip(*pieces, strict=True))


@pytest.mark.parametrize("every_row", [False, True])
def test_what_only_fills_up_counts_for_nothing_where_a_mask_chooses(every_row: bool) -> None:
    batch, _ = batch_of("discrete")
    assert batch.real_rows is not None
    filled = dataclasses.replace(batch, real_rows=torch.cat((batch.real_rows, batch.real_rows[:5])), filled=5)
    if every_row:
        filled = dataclasses.replace(batch, real_rows=None, every_row=True)
    first, second = (learn(made("discrete", gru, Choosy), x) for x in (batch, filled))
    torch.testing.assert_close(first[0].loss, second[0].loss, rtol=1e-6, atol=1e-6)
    for name, gradient in first[1].items():
        torch.testing.assert_close(second[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_mask_of_another_shape_is_refused(packed: bool) -> None:
    class OfTimesteps(Agent):
        def actor_mask(self, batch: TrainingBatch) -> Tensor:
            return batch.time_idx[:, 0 if not packed else slice(-1)] >= 1

    batch, _ = batch_of("discrete", packed)
    with pytest.raises(ValueError, match=rf"actor_mask: .* must be torch.bool of shape \(B, L\) = \({B}, {L}\)"):
        made("discrete", gru, OfTimesteps)(batch)


def test_sequences_drawn_by_priority_keep_weights_and_get_priorities() -> None:
    batch, lengths = batch_of("discrete")
    batch = dataclasses.replace(batch, weight=torch.tensor([0.5, 1.0, 0.25, 0.1]))
    check(lambda: made("discrete", gru, Agent), batch, lengths, size=3)


@pytest.mark.parametrize("settings", [{"popart": False}, {"fake_filter": True, "online_coeff": 0.0}])
def test_without_statistics_of_values_or_without_critics(settings: dict[str, Any]) -> None:
    batch, lengths = batch_of("discrete")
    check(lambda: made("discrete", gru, Agent, **settings), batch, lengths, size=2)


def test_pieces_hold_no_more_padding_than_they_need() -> None:
    batch, lengths = batch_of("continuous")
    pieces = cut(batch, lengths, 2).pieces
    assert [tuple(piece.mask.shape) for piece in pieces] == [(2, 8), (2, 5)]
    assert [tuple(piece.rl2.shape) for piece in pieces] == [
        (2, 9, 1 + ACTION_SPECS["continuous"].vector_size),
        (2, 6, 1 + ACTION_SPECS["continuous"].vector_size),
    ]
    assert [piece.num_real for piece in pieces] == [11, 6] and batch.mask.shape == (4, L)
