"""An evaluation over the workers that are there: who plays it makes no difference to the rollouts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from amago_ray.config.value_checks import check_counts
from amago_ray.config.value_types import objection
from amago_ray.driver.liveness import Liveness
from amago_ray.driver.plan import TEST_SEEDS, deal_environments
from amago_ray.driver.remote import RemoteCall
from amago_ray.envs.makers import MakeEnv, check_spaces
from amago_ray.envs.tasks import fixed_num_envs
from amago_ray.messages import EpisodeResult, EvaluationReport
from amago_ray.pending import ProcessDied
from amago_ray.replay.datasets.dataset import RowLayout
from amago_ray.rollout.assignment import Assignment, assign, in_order
from amago_ray.rollout.evaluate import check_renderable
from amago_ray.rollout.worker import RolloutConfig
from amago_ray.settings import ExperimentSettings, env_processes
from amago_ray.watch.metrics import summarize_episodes


class Evaluation:
    """Shares of an evaluation, each on a worker: share i on worker i, or on another where that one is away.

    A share is played in parts of a few seconds. What a worker had of one goes down with it, and the share begins anew,
    on whoever is there, with the same rollouts.
    start: starts a part of a share on a worker, given (worker, share, part). timeout_s: a worker that needs longer for
    one is restarted. Raises ValueError for a rollout that does not end.
    """

    def __init__(
        self,
        liveness: Liveness,
        num_shares: int,
        start: Callable[[int, int, int], RemoteCall[EvaluationReport]],
        restart: Callable[[int], None],
        timeout_s: float,
    ):
        self._liveness, self._start, self._restart = liveness, start, restart
        self._timeout_s = timeout_s
        self.env_failed = ""  # who survived the first failure of an environment, and what that said
        self._parts: list[list[EvaluationReport]] = [[] for _ in range(num_shares)]
        self._holder: dict[int, int] = {}  # share -> the worker that has begun it
        self._in_flight: dict[int, tuple[RemoteCall[EvaluationReport], int, float]] = {}  # share -> call, worker, start

    @property
    def finished(self) -> bool:
        return all(self._is_played(share) for share in range(len(self._parts)))

    @property
    def episodes(self) -> list[EpisodeResult]:
        """The rollouts that count, by environment and then in their order."""
        found: dict[tuple[int, int], EpisodeResult] = {}
        for part in (part for parts in self._parts for part in parts):
            found |= part.episodes
        return in_order(found)

    @property
    def unfinished(self) -> int:
        """How many rollouts were begun within a limit of timesteps and left out, because they did not end."""
        return sum(parts[-1].unfinished for parts in self._parts if parts)

    @property
    def warned(self) -> list[str]:
        """What the workers that played it have warned of."""
        return [text for parts in self._parts for part in parts for text in part.warned]

    def summary(self) -> dict[str, float]:
        """Averages over the rollouts that count, and how many were left out."""
        return {**summarize_episodes(self.episodes), "Unfinished Rollouts": self.unfinished}

    def calls(self) -> list[RemoteCall]:
        now = time.monotonic()
        self._liveness.look()
        here = self._liveness.here
        for share in [share for share, worker in self._holder.items() if worker not in here]:
            if share not in self._in_flight:
                self._forget(share)
        # First those that are begun, then those whose own worker is there. A worker gets one share at a time: what
        # waits for another share does not hang.
        unplayed = [share for share in range(len(self._parts)) if not self._is_played(share)]
        for share in sorted(unplayed, key=lambda share: (share not in self._holder, share not in here)):
            busy = {worker for _, worker, _ in self._in_flight.values()}
            own = self._holder.get(share, share)
            free = [worker for worker in ((own,) if own in here else here) if worker not in busy]
            if free and share not in self._in_flight:
                self._holder[share] = free[0]
                self._in_flight[share] = (self._start(free[0], share, len(self._parts[share])), free[0], now)
        for share, (call, worker, started) in self._in_flight.items():
            if now - started > self._timeout_s and not call.done():
                if self._liveness.hangs(worker):
                    self._restart(worker)
                self._in_flight[share] = (call, worker, now)
        return [call for call, _, _ in self._in_flight.values()]

    def take(self, call: RemoteCall) -> None:
        share, worker = next((s, w) for s, (c, w, _) in self._in_flight.items() if c is call)
        del self._in_flight[share]
        try:
            report = call.result(self._timeout_s)
        except ProcessDied as death:
            self._liveness.lost(worker, death)
            self._forget(share)
            return
        self._liveness.worked(worker)
        if report.env_failed and not self.env_failed:
            self.env_failed = f"rollout worker {worker}, evaluating: {report.env_failed}; it was built anew"
        self._parts[share] = [*self._parts[share][: report.part], report]

    def _is_played(self, share: int) -> bool:
        return bool(self._parts[share]) and self._parts[share][-1].finished

    def _forget(self, share: int) -> None:
        """Begin a share anew, unless all of it is there."""
        self._holder.pop(share, None)
        if not self._is_played(share):
            self._parts[share] = []


def check_test(
    make_env: MakeEnv,
    timesteps: int | None,
    episodes: int | None,
    num_envs: int | None,
    sample_actions: bool | None,
    render: bool | str | os.PathLike[str],
    save_trajs_to: str | os.PathLike[str] | None,
) -> None:
    """Raises ValueError, before anything starts, for arguments of `Experiment.evaluate_test` that cannot be right."""
    if timesteps is None and episodes is None:
        raise ValueError("evaluate_test needs timesteps (per environment), episodes (in all), or both")
    check_counts("evaluate_test", 1, timesteps=timesteps, episodes=episodes, num_envs=num_envs)
    for name, value, hint in (
        ("sample_actions", sample_actions, bool | None),
        ("render", render, bool | str | os.PathLike),
        ("save_trajs_to", save_trajs_to, str | os.PathLike | None),
    ):
        if wrong := objection(value, hint):
            raise ValueError(f"evaluate_test: {name}={value!r}: {wrong}")
    if render:
        check_renderable(make_env)


def shares_of_a_test(
    settings: ExperimentSettings,
    layout: RowLayout,
    make_env: MakeEnv,
    num_workers: int,
    timesteps: int | None,
    episodes: int | None,
    num_envs: int | None,
    sample_actions: bool,
) -> list[tuple[RolloutConfig, Assignment]]:
    """Environments of their own for a test, dealt out over at most `num_workers` workers, and what to play in each.

    layout: of the training environments. The other arguments are those of `Experiment.evaluate_test`.
    Raises ValueError for environments that cannot be built or have other spaces.
    """
    processes = env_processes(settings)
    check_spaces(make_env, (layout.observation_space, layout.action_space), "evaluate_test: make_env", processes)
    fixed = fixed_num_envs(make_env, processes)
    num_envs = fixed or num_envs or min(settings.parallel_actors, episodes or settings.parallel_actors)
    num_workers = 1 if fixed else min(num_workers, num_envs)
    seed = settings.seed + TEST_SEEDS
    rollouts = deal_environments(settings, make_env, num_envs, num_workers, seed, sample_actions, explore=False)
    sizes = [rollout.num_envs for rollout in rollouts]
    return list(zip(rollouts, assign(sizes, episodes, timesteps, rollout_limit_s=settings.call_timeout_s)))
