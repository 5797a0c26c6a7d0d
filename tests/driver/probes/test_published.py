"""What a network learns in training beside its weights, and no other process would get, is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gpu.cases import agent_spec
from torch import Tensor, nn

from amago_ray.driver.probes.networks import check_loss
from amago_ray.driver.probes.published import check_published
from amago_ray.nets.tstep_encoders import TstepEncoder


class Kept:
    mean: Any = 0.0


class Plain(TstepEncoder):
    """With running statistics in a buffer, a table that nobody trains, and what was seen last."""

    def __init__(self, obs_spec: Any, rl2_dim: int):
        super().__init__(obs_spec, rl2_dim)
        self.size = sum(spec.num_features for spec in obs_spec.values()) + rl2_dim
        self.linear = nn.Linear(self.size, 8)
        self.register_buffer("average", torch.zeros(self.size))
        self.table = torch.randn(self.size)
        self.last: Tensor | None = None
        self.calls = 0
        self.prepare()

    @property
    def emb_dim(self) -> int:
        return 8

    def prepare(self) -> None: ...

    def learn(self, x: Tensor) -> None:
        self.average.lerp_(x, 0.1)

    def centre(self) -> Any:
        return self.average

    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        x = torch.cat([*(obs[n].float().reshape(*rl2.shape[:2], -1) for n in sorted(obs)), rl2], dim=-1)
        self.last, self.calls = x, self.calls + 1
        if self.training:
            self.learn(x.detach().mean((0, 1)))
        return self.linear(x - self.centre() + self.table)


class AsAnAttribute(Plain):
    def prepare(self) -> None:
        self.mean = torch.zeros(self.size)

    def learn(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * x

    def centre(self) -> Any:
        return self.mean


class AsAnArray(AsAnAttribute):
    def prepare(self) -> None:
        self.mean = np.zeros(self.size, np.float32)

    def learn(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * x.numpy()

    def centre(self) -> Any:
        return torch.from_numpy(self.mean)


class AsANumber(AsAnAttribute):
    def prepare(self) -> None:
        self.mean = 0.0

    def learn(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * float(x.mean())


class NotPersistent(AsAnAttribute):
    def prepare(self) -> None:
        self.register_buffer("mean", torch.zeros(self.size), persistent=False)

    def learn(self, x: Tensor) -> None:
        self.mean += x


class InAList(AsAnAttribute):
    def prepare(self) -> None:
        self.means = [torch.zeros(self.size)]

    def learn(self, x: Tensor) -> None:
        self.means.append(x)

    def centre(self) -> Any:
        return self.means[-1]


class Elsewhere(AsAnAttribute):
    def prepare(self) -> None:
        self.kept = Kept()

    def learn(self, x: Tensor) -> None:
        self.kept.mean = x

    def centre(self) -> Any:
        return self.kept.mean


class Draws(Plain):
    """Which is no state, whatever else one thinks of it."""

    def encode(self, obs: Any, rl2: Tensor, mask: Tensor | None) -> Tensor:
        return torch.rand(*rl2.shape[:2], 8, requires_grad=True)


def try_it(encoder: type[TstepEncoder]) -> None:
    spec = agent_spec(tstep_encoder=encoder)
    check_loss(agent := spec.build(), spec, packed=False)
    check_published(agent, spec)


@pytest.mark.parametrize("encoder", [Plain, Draws])
def test_what_is_in_buffers_or_changes_nothing_is_no_matter(encoder: type[TstepEncoder]) -> None:
    try_it(encoder)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (AsAnAttribute, "the attribute 'mean' changes in training and does not reach the processes that act"),
        (AsAnArray, "the attribute 'mean' changes"),
        (AsANumber, "the attribute 'mean' changes"),
        (InAList, "the attribute 'means' changes"),
        (NotPersistent, "the buffer 'mean', which is not persistent, changes"),
    ],
)
def test_what_no_worker_would_get(encoder: type[TstepEncoder], said: str) -> None:
    match = rf"^policy.tstep_encoder \({encoder.__name__}\): {said}.*self.register_buffer"
    with pytest.raises(ValueError, match=match):
        try_it(encoder)


def test_what_is_not_found_is_told_without_its_name() -> None:
    with pytest.raises(ValueError, match="^something changes in training and does not reach the processes that act"):
        try_it(Elsewhere)
