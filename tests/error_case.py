"""One thing that is wrong, and the ways to provoke it that many share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from error_scene import Outcome, Scene

from amago_ray.driver.placement import Cluster

Provoke = Callable[[Scene], Outcome]


@dataclass(frozen=True)
class Case:
    """what: is wrong, in words. names: what the line must contain: the setting, its value, what would be right."""

    what: str
    provoke: Provoke
    names: tuple[str, ...]
    began: bool = False  # the run has begun by then: its folder is there


def with_settings(*bindings: str, flags: tuple[str, ...] = (), cluster: Cluster | None = None) -> Provoke:
    """Train with these on top of a configuration that would work."""

    def provoke(scene: Scene) -> Outcome:
        scene.cluster = cluster
        return scene.command("--config", scene.config(*bindings), *flags)

    return provoke


def words(*command: str) -> Provoke:
    """A command line; RUN in it is a finished run, CONFIG a configuration that would work."""

    def provoke(scene: Scene) -> Outcome:
        places = {"RUN": lambda: str(scene.run), "CONFIG": scene.config}
        return scene.command(*(places[word]() if word in places else word for word in command))

    return provoke


def setting(what: str, binding: str, *names: str) -> Case:
    return Case(what, with_settings(binding), names)


def environment(what: str, name: str, *names: str) -> Case:
    return Case(what, with_settings(f"Experiment.make_train_env = {name}"), names)


def in_run(*command: str, damage: Callable[[Any], Any]) -> Provoke:
    """A command line about a finished run to which `damage`, which is given its folder, was done."""

    def provoke(scene: Scene) -> Outcome:
        damage(scene.run)
        return words(*command)(scene)

    return provoke


def resumed(damage: Callable[[Any], Any], *bindings: str) -> Provoke:
    """`--resume` of a finished run to which `damage` was done."""

    def provoke(scene: Scene) -> Outcome:
        damage(scene.run)
        return scene.command("--config", scene.config("Experiment.epochs = 3", *bindings), "--resume")

    return provoke


def dataset(name: str, *bindings: str) -> Provoke:
    return with_settings(f"Experiment.dataset = @{name}()", "Experiment.train_timesteps_per_epoch = 0", *bindings)
