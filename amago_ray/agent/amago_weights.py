"""Weights that AMAGO 3.x saved, under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from amago_ray.agent.actor_critic import Agent

_PREFIXES = {
    "tstep_encoder.": "policy.tstep_encoder.",
    "traj_encoder.": "policy.traj_encoder.",
    "actor.": "policy.actor.",
    "target_actor.": "target_actor.",
    "critics.net.": "critics.",
    "target_critics.net.": "target_critics.",
    "popart.": "popart.",
}

_DERIVED = (".in_norm.variance", "popart.variance")  # from the other statistics, when they are loaded


# Layers of a block of `ResidualActor`, which AMAGO numbers in the order of their use; 2 is the activation.
_RESIDUAL_BLOCK = {"0": "ff1", "1": "norm1", "3": "ff2", "4": "norm2"}


def _our_name(name: str) -> str:
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    name = re.sub(r"actor\.out\.(weight|bias)$", r"actor.out_layer.\1", name)
    name = re.sub(r"residual_blocks\.(\d+)\.([0134])\.", lambda m: f"blocks.{m[1]}.{_RESIDUAL_BLOCK[m[2]]}.", name)
    return re.sub(r"\._t$", ".t", name)


def _our_layout(name: str, value: Tensor, num_heads: int) -> Tensor:
    """AMAGO packs attention rows as (3, head width, heads) and stores ensemble biases as (1, 1, C, H)."""
    if re.search(r"qkv_projection\.(weight|u)$", name):
        rows = value.unflatten(0, (3, -1, num_heads))
        return rows.transpose(1, 2).flatten(0, 2).contiguous()
    if name.endswith("head_scaler"):
        return value.reshape(num_heads, 1, 1)
    if re.match(r"(target_)?critics\..*bias$", name):
        return value.reshape(value.shape[2], 1, value.shape[3])
    return value


def convert_amago_entries(entries: Mapping[str, Tensor], agent: Agent) -> dict[str, Tensor]:
    """Any part of AMAGO's state dict, or of a dict of gradients like it, under our names and in our layout."""
    heads = getattr(getattr(agent.policy.traj_encoder, "tformer", None), "n_heads", 0)
    converted = {_our_name(name): value for name, value in entries.items()}
    return {name: _our_layout(name, value, heads) for name, value in converted.items()}


def convert_amago_weights(state: Mapping[str, Tensor], agent: Agent) -> dict[str, Tensor]:
    """AMAGO's state dict of one agent (its third copy of the critics left out) as a state dict of `agent`.

    It lacks what `agent` derives from the rest when it loads it.
    Raises ValueError that names the weights that are missing, left over, or of another shape than `agent` has.
    """
    own = agent.state_dict()
    plain = {name.removeprefix("module."): value for name, value in state.items()}  # a prefix of several processes
    kept = {name: value for name, value in plain.items() if not name.startswith("maximized_critics.")}
    names = {_our_name(name) for name in kept}
    needed = {name for name in own if not name.endswith(_DERIVED)}
    missing, left_over = sorted(needed - names), sorted(names - own.keys())
    if missing or left_over:
        raise ValueError(
            f"AMAGO weights do not fit this configuration: missing {missing[:5]}, not expected {left_over[:5]} "
            f"({len(missing)} and {len(left_over)} in all); check the encoder and agent types"
        )
    converted: dict[str, Tensor] = {}
    wrong = []
    for theirs, value in kept.items():
        name = _our_name(theirs)
        try:
            converted |= convert_amago_entries({theirs: value}, agent)
        except (RuntimeError, IndexError):  # a shape that has no place in our layout
            wrong.append(f"{name}: {tuple(value.shape)} in AMAGO's layout, for {tuple(own[name].shape)} in ours")
            continue
        if converted[name].shape != own[name].shape:
            wrong.append(f"{name}: {tuple(converted[name].shape)}, not {tuple(own[name].shape)}")
    if wrong:
        raise ValueError(f"AMAGO weights do not fit this configuration: {'; '.join(wrong[:5])} ({len(wrong)} in all)")
    return converted
