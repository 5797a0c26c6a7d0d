"""The connection to Ray, and the nodes that it has."""

from __future__ import annotations

import atexit
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray._private import services as ray_services  # how it starts processes: not public
from ray._private import utils as ray_utils  # who handles SIGTERM: not public
from ray._private import worker as ray_worker  # which processes Ray has started here: not public, either
from ray._private.state import available_resources_per_node, state  # what is free, and which nodes leave: not public
from ray.util.placement_group import get_current_placement_group

from amago_ray.driver.placement import Cluster, Node, Resources
from amago_ray.driver.preemption import RESUMABLE, Preempted
from amago_ray.messages import CannotGoOn

CONNECT_TIMEOUT_S = 10.0
START_ATTEMPTS = 3
ROOM_TIMEOUT_S = 3.0  # until Ray has counted what an experiment that was closed gives back
CONTROL = "gcs_server"
LAUNCHED = Path("~/ray_bootstrap_config.yaml")

_opened_by = ""  # the run that has started the local Ray of this process, and ends it


class RayGone(CannotGoOn):
    """Ray, which was started on this machine for the run, has been killed, and all processes with it."""


def connect(address: str | None, cpus_needed: Callable[[Cluster], float], run_name: str = "") -> tuple[Cluster, bool]:
    """Connect to Ray: the instance that this process already uses, the cluster at `address`, or a new local one.

    Returns what there is, and whether the connection was made here, so that `disconnect` is due at the end.

    address: None takes RAY_ADDRESS where it is set (a submitted job) and "local" otherwise.
    cpus_needed: by a run on a machine of that size. A local Ray is told that it has so many, so that a run with more
        processes than cores still starts.
    run_name: whose connection this is, where it is an experiment's.
    Raises ValueError when there is no cluster at `address`, or none starts here.
    """
    global _opened_by
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        return (_beside(_opened_by, cpus_needed) if _opened_by else survey()), False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        machine = this_machine()
        options |= {"num_cpus": max(machine.cpus, math.ceil(cpus_needed(machine))), "include_dashboard": False}
        _start(options)
        _opened_by = run_name
        # What was promised to Ray above the machine's own cores must not be planned with.
        return replace(survey(), cpus=machine.cpus, local=True), True
    try:
        _check_answers(address)
        with _sigterm_left_alone():
            ray.init(address=address, **options)
    except (OSError, ValueError) as error:
        address = re.sub(r"[^/@]*@", "...@", address)  # it may come from the environment, with a password
        raise ValueError(f"Experiment.ray_address={address!r}: no Ray cluster answers there ({error})") from error
    return survey(), True


def _beside(run_name: str, cpus_needed: Callable[[Cluster], float]) -> Cluster:
    """What the local Ray of another experiment of this process has, once closed ones have given back their part."""
    started = time.monotonic()
    while True:
        there = replace(survey(), opened_by=run_name)
        free = sum(node.free.cpus for node in there.nodes)
        if cpus_needed(there) <= free or time.monotonic() - started > ROOM_TIMEOUT_S:
            return there
        time.sleep(0.1)  # between two looks at what is free


def _start(options: Mapping[str, Any]) -> None:
    """Raises ValueError where Ray does not start on this machine, which it gives half a minute at a time."""
    for left in reversed(range(START_ATTEMPTS)):
        try:
            with _sigterm_left_alone(), _in_groups_of_their_own():
                ray.init(address="local", **options)
            return
        except KeyboardInterrupt:
            ray.shutdown()
            raise
        except Exception as error:  # Ray's own are nothing more exact
            ray.shutdown()
            if not left:
                why = str(error).strip().split("\n", 1)[0]
                raise ValueError(
                    f"Ray did not start on this machine ({why}); is it very busy, or short of memory?"
                ) from error


@contextmanager
def _sigterm_left_alone() -> Iterator[None]:
    """Where SIGTERM has a handler, neither of Ray's takes its place: of `ray.init`, and one that prints a stack."""
    handler, set_handler = signal.getsignal(signal.SIGTERM), ray_utils.set_sigterm_handler
    if handler in (signal.SIG_DFL, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = set_handler
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def _in_groups_of_their_own() -> Iterator[None]:
    """Ray's processes get groups of their own: a signal to this process's group, as `timeout` and job schedulers send
    it, is this process's alone, which saves what the others have and ends them. They end with it in any case."""
    services: Any = ray_services
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _check_answers(address: str) -> None:
    """Raises OSError where nobody listens at host:port, which Ray itself would try for many minutes."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d{1,5})", address)
    if match is not None:
        with socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=CONNECT_TIMEOUT_S):
            pass


def disconnect() -> None:
    """Leave Ray, ending it where it was started for this run."""
    global _opened_by
    _opened_by = ""
    if not control_is_gone():
        ray.shutdown()


def _end_without_ray() -> None:
    """The last thing that a process does before Ray's own leaving, which waits for a control service that is gone and
    ends the process a minute later, with status 1 whatever it had."""
    if control_is_gone():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(RESUMABLE if Preempted.raised else 1)


atexit.register(_end_without_ray)  # what is registered later, which is nearly everything, is called before it


def control_is_gone() -> bool:
    """Whether the control service of the Ray that this process has started is dead: whatever it is asked hangs."""
    return CONTROL in _dead_of_ray()


def _dead_of_ray() -> list[str]:
    """Which processes of the Ray that this process has started are dead, of those without which it is none."""
    node = ray_worker._global_node
    return [kind for kind, _ in node.dead_processes() if kind in (CONTROL, "raylet")] if node is not None else []


def check_ray_lives() -> None:
    """Raises RayGone where this process has started Ray on this machine and that was killed: nobody restarts it.

    Of nodes of a cluster that are gone, others, or the same, may come.
    """
    if dead := _dead_of_ray():
        raise RayGone(
            f"Ray on this machine is gone: its {dead[0]} was killed, perhaps for want of memory. --resume goes on from "
            "the newest training state"
        )


def this_machine() -> Cluster:
    """This machine alone, before Ray runs on it."""
    total = Resources(os.cpu_count() or 1, torch.cuda.device_count(), math.inf)
    return Cluster(os.cpu_count() or 1, (Node("this machine", total, total),), local=True)


def survey() -> Cluster:
    """What the cluster that this process is connected to has; of a placement group that it is part of, that alone."""
    group = get_current_placement_group()
    if group is not None:
        total = Resources(*(sum(b.get(name, 0.0) for b in group.bundle_specs) for name in ("CPU", "GPU", "memory")))
        return Cluster(int(total.cpus), (Node("the placement group", total, total),), in_group=True)
    free = available_resources_per_node()
    nodes = tuple(
        Node(
            n["NodeManagerAddress"],
            _resources(n["Resources"]),
            _resources(free.get(n["NodeID"], {})),
            {name: value for name, value in n["Labels"].items() if not name.startswith("ray.io/node-")},
        )
        for n in sorted(ray.nodes(), key=lambda n: n["NodeID"])
        if n["Alive"]
    )
    more = tuple(growth(nodes, _launched()))
    return Cluster(int(sum(node.total.cpus for node in (*nodes, *more))), nodes, more)


def leaving_nodes() -> dict[str, float | None]:
    """Ids of the nodes that are about to be taken away, and in how many seconds, where that is known."""
    deadlines_ms = state.get_draining_nodes()
    return {node: max(at / 1000 - time.time(), 0.0) if at else None for node, at in deadlines_ms.items()}


def node_of(actor_id: str) -> str:
    """Id of the node that an actor runs on; empty where it is on none."""
    actor = state.actor_table(actor_id)
    return actor["Address"]["NodeID"] if actor.get("State") == "ALIVE" else ""


def growth(nodes: Sequence[Node], launched: Mapping[str, Any]) -> Iterator[Node]:
    """Nodes that the autoscaler may add to `nodes`, by the configuration that `ray up` launched the cluster with."""
    room = launched.get("max_workers", 0) - (len(nodes) - 1)
    for name, kind in launched.get("available_node_types", {}).items():
        labels, amounts = kind.get("labels", {}), kind.get("resources", {})
        there = sum(labels.items() <= node.labels.items() for node in nodes)
        is_head = name == launched.get("head_node_type")
        for _ in range(min(kind.get("max_workers", 0) + is_head - there, room) if amounts.get("CPU") else 0):
            total = _resources({"memory": math.inf} | amounts)
            yield Node(f"a new {name} node", total, total, labels)
            room -= 1


def _launched() -> dict[str, Any]:
    """What the launcher left on the head node, where submitted drivers run; empty where there was no launcher."""
    file = LAUNCHED.expanduser()
    return yaml.safe_load(file.read_text()) if file.is_file() else {}


def _resources(amounts: Any) -> Resources:
    return Resources(amounts.get("CPU", 0.0), amounts.get("GPU", 0.0), amounts.get("memory", 0.0))
