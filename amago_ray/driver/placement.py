"""Where the processes of a run go: a plan over the nodes of a cluster, made and shown before anything starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

NOWHERE = -1


class Resources(NamedTuple):
    """What a process asks for, or a node has, in Ray's terms."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_bytes: float = 0.0

    def fit(self, available: Resources) -> bool:
        return all(wanted <= there + 1e-6 for wanted, there in zip(self, available))

    def less(self, other: Resources) -> Resources:
        return Resources(*(mine - theirs for mine, theirs in zip(self, other)))

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}"] if self.cpus else []
        parts += [f"{self.gpus:g} GPU{'s' * (self.gpus != 1)}"] if self.gpus else []
        parts += [amount(self.memory_bytes)] if self.memory_bytes else []
        return ", ".join(parts) or "nothing"


def amount(num_bytes: float) -> str:
    """Bytes in the unit that reads best, "9.5 MB" or "12 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            number = num_bytes / size
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{num_bytes:.0f} bytes"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster: what it has in all, what is free of that now, and its labels."""

    address: str
    total: Resources
    free: Resources
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """What Ray runs on.

    cpus: to plan with. On this machine alone these are its cores, whatever Ray was told. growth: nodes that an
    autoscaler may still add. local: Ray was started here, for this run. in_group: this process is part of a placement
    group (a trial of a sweep), which every process of the run goes into. opened_by: another run of this process, for
    which Ray was started on this machine: no node will come, and what that run has stays taken until it is closed.
    """

    cpus: int
    nodes: tuple[Node, ...]
    growth: tuple[Node, ...] = ()
    local: bool = False
    in_group: bool = False
    opened_by: str = ""

    @property
    def gpus(self) -> float:
        return sum(node.total.gpus for node in (*self.nodes, *self.growth))


@dataclass(frozen=True)
class Role:
    """Processes of one kind: how many, what each asks for, and the labels that its node must have (Ray's selectors).

    spread: over as many nodes as there are; otherwise on as few as possible, beside what is there already.
    """

    name: str
    count: int
    each: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    spread: bool = False


@dataclass(frozen=True)
class Placement:
    """Node index of every process, role by role; NOWHERE where no node has room."""

    roles: tuple[Role, ...]
    nodes: tuple[Node, ...]
    places: tuple[tuple[int, ...], ...]

    def waiting(self, role: str) -> tuple[int, ...]:
        """Which processes of a role have no place."""
        (i,) = (i for i, r in enumerate(self.roles) if r.name == role)
        return tuple(n for n, place in enumerate(self.places[i]) if place == NOWHERE)

    def where(self, role: int) -> str:
        """The nodes of a role in one line: "10.0.0.2 (pool=rollout): 4, 10.0.0.3: 4, 2 wait for a node"."""
        counts = Counter(self.places[role])
        waiting = counts.pop(NOWHERE, 0)
        parts = [f"{describe(self.nodes[i])}: {count}" for i, count in sorted(counts.items())]
        if waiting:
            parts.append(f"{waiting} wait{'s' * (waiting == 1)} for a node")
        return ", ".join(parts)


def describe(node: Node) -> str:
    """A node's address, and the pool that it is in, if any."""
    pool = node.labels.get("pool")
    return node.address if pool is None else f"{node.address} ({pool})"


def place(roles: Sequence[Role], nodes: Sequence[Node], free_only: bool = True) -> Placement:
    """Give every process the node that Ray's strategies would: learners and shards together, workers spread out.

    free_only: count with what is free now, else with all that the nodes have.
    """
    left = [node.free if free_only else node.total for node in nodes]
    packed: Counter[int] = Counter()
    places = []
    for role in roles:
        own: Counter[int] = Counter()
        chosen = []
        for _ in range(role.count):
            fitting = [
                i for i, node in enumerate(nodes) if role.each.fit(left[i]) and matches(node.labels, role.labels)
            ]
            if not fitting:
                chosen.append(NOWHERE)
                continue
            crowd = own if role.spread else packed
            best = min(fitting, key=lambda i: (crowd[i] if role.spread else -crowd[i], -left[i].cpus, i))
            left[best] = left[best].less(role.each)
            own[best] += 1
            packed[best] += not role.spread
            chosen.append(best)
        places.append(tuple(chosen))
    return Placement(tuple(roles), tuple(nodes), tuple(places))


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels satisfy a label selector of Ray: "a", "!a", "in(a, b)", "!in(a, b)"."""
    for name, wanted in selector.items():
        negated, choices = wanted.startswith("!"), wanted.removeprefix("!")
        listed = re.fullmatch(r"in\((.*)\)", choices)
        values = [value.strip() for value in listed[1].split(",")] if listed else [choices]
        if (labels.get(name) in values) == negated:
            return False
    return True


def pool(name: str, nodes: Sequence[Node]) -> dict[str, str]:
    """The selector of nodes that are labelled pool=`name`, where there are any; else one that fits every node."""
    return {"pool": name} if any(node.labels.get("pool") == name for node in nodes) else {}


def check_fits(roles: Sequence[Role], cluster: Cluster, whole: bool = False) -> None:
    """Raises ValueError, saying what is missing, when the run could not even begin on the cluster at its largest.

    To begin it needs all learners and shards, and one process of every role that is spread; all of these too where it
    is `whole`, as a trial of a sweep is. Beside another run on this machine all of it needs room that is free now.
    """
    whole = whole or bool(cluster.opened_by)
    nodes = (*cluster.nodes, *cluster.growth)
    needed = [
        Role(r.name, min(r.count, 1) if r.spread and not whole else r.count, r.each, r.labels, r.spread) for r in roles
    ]
    placement = place(needed, nodes, free_only=bool(cluster.opened_by))
    for role, places in zip(roles, placement.places):
        if missing := places.count(NOWHERE):
            labels = "".join(f" labelled {name}={value}" for name, value in role.labels.items())
            if cluster.opened_by:
                left = "; ".join(f"{node.free} left of {node.total}" for node in nodes)
                raise ValueError(
                    f"the experiment {cluster.opened_by!r} is still open in this process, and beside it there is no "
                    f"room for {missing} of {role.count} {role.name}s, which need {role.each} each ({left}): "
                    "close() it first, or use `with Experiment(...) as experiment:`"
                )
            there = "; ".join(f"{describe(node)} has {node.total}" for node in nodes) or "there is none"
            who, finds = ("not one", "finds a") if role.spread and not whole else (missing, "find no")
            raise ValueError(
                f"the run can never start: {who} of {role.count} {role.name}s, which need {role.each} each, {finds} "
                f"node{labels} with as much left ({there}): {REMEDIES[role.name]}, or add nodes"
            )


LEARNER, SHARD, WORKER = "learner", "replay shard", "rollout worker"
REMEDIES = {
    LEARNER: "lower Experiment.num_learners or learner_cpus",
    SHARD: "lower Experiment.num_replay_shards or replay_capacity_gb",
    WORKER: "lower Experiment.num_rollout_workers, see Experiment.rollout_nodes",
}


def table(title: str, placement: Placement, memory: Mapping[str, str]) -> str:
    """The plan as text: a line per role, then a line per kind of memory."""
    rows = [("process", "number", "each", "where")]
    for i, role in enumerate(placement.roles):
        rows.append((role.name, f"{role.count}", str(role.each), placement.where(i)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [title]
    for name, number, each, where in rows:
        lines.append(f"  {name:{widths[0]}}  {number:>{widths[1]}}  {each:{widths[2]}}  {where}".rstrip())
    width = max(map(len, memory), default=0)
    lines += [f"  {name:{max(width, widths[0])}}  {what}" for name, what in memory.items()]
    return "\n".join(lines)
