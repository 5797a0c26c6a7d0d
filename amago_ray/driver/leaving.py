"""Nodes that are about to be taken away, which Ray is told of (`ray drain-node`, spot machines): what moves in time."""

from __future__ import annotations

import time
from collections.abc import Callable

from amago_ray.driver.liveness import Liveness
from amago_ray.driver.placement import WORKER
from amago_ray.driver.topology import Topology

LOOK_INTERVAL_S = 5.0


class Leaving:
    """Moves rollout workers off nodes that leave, as on their death: Ray starts them where there is room.

    Learners and shards stay until their node goes, since to move them costs as much as to lose them; `saves` asks for
    a training state before.
    say: is told, in words.
    """

    def __init__(self, topology: Topology, liveness: Liveness, say: Callable[[str], None]):
        self._topology, self._liveness, self._say = topology, liveness, say
        self._not_before = 0.0
        self._known: set[tuple[str, str]] = set()  # node, and a process on it that was dealt with
        self._saves = False

    def look(self) -> None:
        """To be called now and then; asks Ray every LOOK_INTERVAL_S."""
        now = time.monotonic()
        if now < self._not_before:
            return
        self._not_before = now + LOOK_INTERVAL_S
        nodes = self._topology.leaving_nodes()
        if not nodes:
            return
        for (role, index), node in self._topology.nodes_of_processes().items():
            if node not in nodes or (node, f"{role} {index}") in self._known:
                continue
            self._known.add((node, f"{role} {index}"))
            going = f"is to be taken away{_when(nodes[node])}"
            if role == WORKER:
                self._say(f"rollout worker {index} moves: its node {going}")
                self._liveness.moves(index)
                self._topology.restart_worker(index)
            else:
                self._say(f"the node of {role} {index} {going}: the next epoch is saved")
                self._saves = True

    def saves(self) -> bool:
        """Whether a training state is due for what `look` found; asked once for each."""
        due, self._saves = self._saves, False
        return due


def _when(left_s: float | None) -> str:
    return "" if left_s is None else f" in {left_s:.0f} s"
