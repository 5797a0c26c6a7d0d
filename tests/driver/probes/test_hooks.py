"""Hooks of an agent that return a wrong shape are refused before anything starts, also where it would broadcast."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from driver.probes.test_networks import experiment_of
from small_agents import small_agent_spec
from torch import Tensor

from amago_ray.agent import Agent, AgentSpec
from amago_ray.driver.probe import probe
from amago_ray.driver.probes.networks import check_loss
from amago_ray.envs.builtin import Counting
from amago_ray.nets.critics import NCritics
from amago_ray.nets.traj_encoders import FFTrajEncoder


class MainTargetOnly(Agent):
    def td_target(self, next_BLD: Tensor, batch: Any) -> Tensor:
        return super().td_target(next_BLD, batch)[..., -1:]


class TargetsTransposed(Agent):
    def td_target(self, next_BLD: Tensor, batch: Any) -> Tensor:
        return super().td_target(next_BLD, batch).transpose(0, 1)


class TargetOfNumbers(Agent):
    def td_target(self, next_BLD: Tensor, batch: Any) -> Any:
        return 1.0


class JudgesOnce(Agent):
    def judge(self, real: Any) -> Any:
        return super().judge(real)[0]


class ErrorNotSqueezed(Agent):
    def critic_error(self, q_BLCGO: Tensor, target_BLG: Tensor) -> Tensor:
        return super().critic_error(q_BLCGO, target_BLG).unsqueeze(-1)


class AdvantageOfMain(Agent):
    def advantage(self, q_BLCG1: Tensor, value_KBLCG1: Tensor) -> Tensor:
        return super().advantage(q_BLCG1, value_KBLCG1)[..., -1:]


class WeightOfRows(Agent):
    def filter_weight(self, advantage_BLG: Tensor) -> Tensor:
        return super().filter_weight(advantage_BLG)[..., -1].transpose(0, 1)


class ObjectiveSummed(Agent):
    def actor_objective(self, *args: Any) -> Tensor:
        return super().actor_objective(*args).sum(-1)


class MetricOfRows(Agent):
    def actor_objective(self, dist: Any, taken: Tensor, judged: Any, metrics: Any, log: bool) -> Tensor:
        metrics["mine"] = taken[0, :, 0]
        return super().actor_objective(dist, taken, judged, metrics, log)


class MetricOfPython(Agent):
    def actor_objective(self, dist: Any, taken: Tensor, judged: Any, metrics: Any, log: bool) -> Tensor:
        metrics["mine"] = 0.5
        return super().actor_objective(dist, taken, judged, metrics, log)


class RightInAll(Agent):
    """Every hook overridden, and one metric of each kind."""

    def td_target(self, next_BLD: Tensor, batch: Any) -> Tensor:
        return super().td_target(next_BLD, batch)

    def judge(self, real: Any) -> Any:
        return super().judge(real)

    def critic_error(self, q_BLCGO: Tensor, target_BLG: Tensor) -> Tensor:
        return super().critic_error(q_BLCGO, target_BLG)

    def actor_objective(self, dist: Any, taken: Tensor, judged: Any, metrics: Any, log: bool) -> Tensor:
        metrics |= {"one": taken.mean(), "rows": taken[..., 0], "of each": taken}
        return super().actor_objective(dist, taken, judged, metrics=metrics, log=log)


class CriticsOfOneGamma(NCritics):
    def values(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().values(*args, **kwargs)[..., :1, :]


def narrow_filter(advantage: Tensor) -> Tensor:
    return torch.ones_like(advantage[..., :1])


def spec_of(**settings: Any) -> AgentSpec:
    return small_agent_spec(partial(Counting, action="continuous"), FFTrajEncoder, 8, **settings)


@pytest.mark.parametrize("packed", [False, True])
def test_hooks_that_return_what_they_should(packed: bool) -> None:
    spec = spec_of(agent_type=RightInAll)
    agent = spec.build()
    before = set(vars(agent)), set(vars(agent.critics))
    check_loss(agent, spec, packed)
    assert (set(vars(agent)), set(vars(agent.critics))) == before, "nothing stays in place of a hook"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"agent_type": MainTargetOnly}, r"MainTargetOnly.td_target: .* \(1, 3, 1\); it must be \(1, N, G\), with N=3"),
        ({"agent_type": TargetsTransposed}, r"TargetsTransposed.td_target: .* \(3, 1, \d\)"),
        ({"agent_type": TargetOfNumbers}, r"TargetOfNumbers.td_target: it returned a float; it must return a tensor"),
        ({"agent_type": JudgesOnce}, "JudgesOnce.judge: it returned a Tensor; it must return 2 tensors"),
        ({"agent_type": ErrorNotSqueezed}, r"ErrorNotSqueezed.critic_error: .* must be \(1, N, C, G\)"),
        ({"agent_type": AdvantageOfMain}, r"AdvantageOfMain.advantage: .* \(1, 3, 1\)"),
        ({"agent_type": WeightOfRows}, r"WeightOfRows.filter_weight: .* \(3, 1\)"),
        ({"fbc_filter_func": narrow_filter}, r"Agent.filter_weight: .* \(1, 3, 1\)"),
        ({"agent_type": ObjectiveSummed}, r"ObjectiveSummed.actor_objective: .* \(1, 3\)"),
        ({"agent_type": MetricOfRows}, r"MetricOfRows.actor_objective: its metric 'mine' is of shape \(3,\)"),
        ({"agent_type": MetricOfPython}, "MetricOfPython.actor_objective: its metric 'mine' is a float"),
        ({"critic_type": CriticsOfOneGamma}, r"CriticsOfOneGamma.values: .* must be \(K, 1, N, C, G, O\), with G="),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_hooks_that_do_not(settings: dict[str, Any], said: str, packed: bool) -> None:
    spec = spec_of(**settings)
    with pytest.raises(ValueError, match=f"^{said}"):
        check_loss(spec.build(), spec, packed)


def test_it_is_told_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^MainTargetOnly.td_target: it returned shape .*G=\d+$"):
        probe(experiment_of(MainTargetOnly))
