"""Which discount factors are trained beside the one that acts."""

from __future__ import annotations

from dataclasses import dataclass

import gin

from amago_ray.agent.checks import check_gamma
from amago_ray.specs import ActionKind

AUXILIARY_GAMMAS = (0.1, 0.9, 0.95, 0.97, 0.99, 0.995)


@gin.configurable
@dataclass(frozen=True)
class Multigammas:
    """Discount factors trained beside the main one, for discrete and for all other action spaces."""

    discrete: tuple[float, ...] = AUXILIARY_GAMMAS
    continuous: tuple[float, ...] = AUXILIARY_GAMMAS

    def __post_init__(self) -> None:
        for kind in ("discrete", "continuous"):
            for gamma in getattr(self, kind):
                check_gamma(f"Multigammas.{kind}: {gamma!r} of {getattr(self, kind)!r}", gamma)

    def for_actions(self, kind: ActionKind) -> tuple[float, ...]:
        return tuple(self.discrete if kind == "discrete" else self.continuous)
