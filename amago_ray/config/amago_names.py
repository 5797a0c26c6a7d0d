"""AMAGO's names and what they are called here, as data: `config` accepts them wherever a setting is given.

A name that exists here is never translated. See docs/amago.md for what has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Modules of AMAGO 3.x that define configurables: "amago.nets.policy_dists.Beta", or the end of it, names a class here,
# wherever it lies.
MODULES = (
    "amago.agent",
    "amago.envs.amago_env",
    "amago.envs.exploration",
    "amago.experiment",
    "amago.hindsight",
    "amago.loading",
    "amago.nets.actor_critic",
    "amago.nets.cnn",
    "amago.nets.ff",
    "amago.nets.policy_dists",
    "amago.nets.traj_encoders",
    "amago.nets.transformer",
    "amago.nets.tstep_encoders",
    "amago.nets.utils",
    "amago.utils",
)

# Class of AMAGO -> class here.
CLASSES = {
    "PopArtLayer": "PopArt",
    "VanillaAttention": "CausalAttention",
    "VanillaFlexAttention": "CausalAttention",
}


@dataclass(frozen=True)
class Argument:
    """What an argument of AMAGO is here.

    bindings: AMAGO's value -> settings here ("Owner.argument") and their values. Raises ValueError, saying what is
        right, for a value that cannot be had.
    notice: what the user is told, after AMAGO's name.
    takes_reference: whether `bindings` may be given a reference or macro of gin in place of a value.
    """

    bindings: Callable[[Any], dict[str, Any]]
    notice: str
    takes_reference: bool = False


def _named(*here: str) -> Argument:
    """The same value under other names."""
    return Argument(lambda value: dict.fromkeys(here, value), f"is {' and '.join(here)} here", takes_reference=True)


def _unused(why: str) -> Argument:
    """Accepted without effect."""
    return Argument(lambda value: {}, f"has no effect here: {why}", takes_reference=True)


def _only(accepted: Any, why: str, remedy: str) -> Argument:
    """Accepted without effect at one value, refused at others."""

    def bindings(value: Any) -> dict[str, Any]:
        if value != accepted:
            raise ValueError(remedy)
        return {}

    return Argument(bindings, f"has no effect here: {why}")


# "Class.argument" of AMAGO -> what it is here.
ARGUMENTS = {
    "CNNTstepEncoder.out_norm": _named("CNNTstepEncoder.norm"),
    "FFTrajEncoder.out_norm": _named("FFTrajEncoder.norm"),
    "LearnablePosEmb.max_time_idx": _named("TformerTrajEncoder.max_time_idx"),
    "Experiment.async_env_mp_context": _unused("Ray starts the processes"),
    "Experiment.always_load_latest": _unused("workers are sent the learners' weights"),
    "Experiment.critic_loss_weight": _named("Agent.critic_loss_weight", "MultiTaskAgent.critic_loss_weight"),
    "Experiment.dloader_workers": _unused("replay shards read and batch the data; see num_replay_shards"),
    "Experiment.has_dset_edit_rights": _unused("replay shards alone add and remove data"),
    "Experiment.local_time_optimizer": _only(
        False,
        "optimiser steps are counted over the run",
        "for Adam on local time set Agent.optimizer_type = @AdamWRel and AdamWRel.reset_interval",
    ),
    "Experiment.sample_actions": _named("Experiment.sample_actions_train", "Experiment.sample_actions_val"),
    "Experiment.save_trajs_as": _unused(
        "replay has a format of its own, see replay_compression; amago-ray replay RUN --export DIR writes AMAGO's files"
    ),
}


def class_here(name: str) -> str:
    """The name here of a class that AMAGO calls `name`."""
    return CLASSES.get(name, name)


def is_module_of_amago(module: str) -> bool:
    """Whether a selector that begins with `module` may mean one of AMAGO's, by its own package's name or by ours."""
    return module.split(".")[0] in ("amago", "amago_ray") or any(known.endswith("." + module) for known in MODULES)
