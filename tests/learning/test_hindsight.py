"""A far goal that nothing but arriving is rewarded for is learned with hindsight, and not without."""

from __future__ import annotations

from functools import partial

from small_agents import small_agent_spec, with_gammas

from amago_ray import config
from amago_ray.envs.builtin import GridReach
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.replay.sampling.relabeling import HindsightRelabeler, Relabeler
from amago_ray.single_process import SingleProcess

SIZE = 11
MAX_EPOCHS = 20  # four seeds out of four needed 12 with hindsight, and were at 0 after 20 without


def best_success(relabeler: Relabeler | None) -> float:
    """The best share of goals reached by the policy's mode, over at most MAX_EPOCHS."""
    config.load([], with_gammas(0.8))
    make_env = partial(GridReach, SIZE)
    encoder = partial(GRUTrajEncoder, d_hidden=32, n_layers=1, d_output=32)
    training = SingleProcess(
        make_env,
        small_agent_spec(make_env, encoder, max_seq_len=2 * SIZE + 2, gamma=0.95, tau=0.02),
        relabeler=relabeler,
    )
    best = 0.0
    for epoch in range(MAX_EPOCHS):
        training.epoch(steps_per_env=2 * SIZE + 2, batches=30)
        if epoch % 4 == 3:
            best = max(best, training.mean_return(200, sample_actions=False))
            if best >= 0.9:
                break
    return best


def test_with_hindsight_the_goal_is_reached() -> None:
    assert best_success(HindsightRelabeler()) >= 0.9


def test_without_it_the_same_budget_is_not_enough() -> None:
    assert best_success(None) <= 0.1
