"""What is made of MiniGrid's observations, on a small environment of the same shape, and on its own."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from amago_ray.envs.makers import check_env
from amago_ray.envs.spaces import obs_spec
from amago_ray.envs.suites.minigrid import MAX_WORDS, PAD, UNKNOWN, WORDS, ImageBounds, MissionTokens, make_minigrid
from amago_ray.nets.mixed_encoder import MixedTstepEncoder, default_tstep_encoder
from amago_ray.nets.scaling import BoundsScale

MISSIONS = ("go to the red ball", "Open the door, then sing")


class Missions(gym.Space[str]):
    """As minigrid's: a space of str that is no spaces.Text."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return MISSIONS[0]


class FakeGrid(gym.Env[dict[str, Any], np.int64]):
    """A view of 7 x 7 codes, a direction and a mission, another one at each reset."""

    def __init__(self, size: int = 7) -> None:
        self.observation_space = spaces.Dict(
            direction=spaces.Discrete(4),
            image=spaces.Box(0, 255, shape=(size, size, 3), dtype=np.uint8),
            mission=Missions(),
        )
        self.action_space = spaces.Discrete(7)
        self.resets = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.mission = MISSIONS[self.resets % 2]
        self.resets += 1
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return self._observe(), 0.0, False, bool(action == 6), {}

    def _observe(self) -> dict[str, Any]:
        image = self.np_random.integers(0, (11, 6, 3), size=self.observation_space["image"].shape, dtype=np.uint8)
        return {"direction": int(self.np_random.integers(4)), "image": image, "mission": self.mission}


def words_of(tokens: np.ndarray) -> list[str]:
    return ["?" if token == UNKNOWN else WORDS[token - 2] for token in tokens if token != PAD]


def test_missions_are_tokens_of_the_fixed_vocabulary() -> None:
    env = MissionTokens(FakeGrid(), max_words=8)
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    assert first["mission"].shape == (8,)
    assert words_of(first["mission"]) == ["go", "to", "the", "red", "ball"]
    assert first["mission"][5:].tolist() == [PAD] * 3
    np.testing.assert_array_equal(env.step(np.int64(0))[0]["mission"], first["mission"])
    assert words_of(env.reset()[0]["mission"]) == ["open", "the", "door", ",", "then", "?"]


def test_tokens_keep_their_meaning() -> None:
    """New words go to the end: a policy that was trained before reads on."""
    assert len(set(WORDS)) == len(WORDS) == 58
    assert [WORDS.index(word) for word in (",", "ball", "go", "red", "your")] == [0, 8, 20, 42, 57]


def test_a_mission_that_is_too_long_says_how_long() -> None:
    env = MissionTokens(FakeGrid(), max_words=4)
    with pytest.raises(ValueError, match="^max_words=4: must be at least 5 for the mission 'go to the red ball'"):
        env.reset(seed=0)


def test_observations_belong_to_whoever_gets_them() -> None:
    env = MissionTokens(FakeGrid(), max_words=6)
    first = env.reset(seed=0)[0]
    first["mission"][:] = 0
    assert env.step(np.int64(0))[0]["mission"].any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="max_words=0: must be"):
        MissionTokens(FakeGrid(), max_words=0)
    with pytest.raises(ValueError, match="words=.*must be distinct"):
        MissionTokens(FakeGrid(), words=("a", "a"))
    for key in ("image", "no such"):
        with pytest.raises(ValueError, match=f"key='{key}': must be a text"):
            MissionTokens(FakeGrid(), key=key)
    with pytest.raises(ValueError, match="key='direction': must be a Box"):
        ImageBounds(FakeGrid(), 1, key="direction")


def test_codes_are_scaled_by_what_they_can_be() -> None:
    env = ImageBounds(FakeGrid(), (10, 5, 2))
    image = env.observation_space["image"]
    assert isinstance(image, spaces.Box) and image.dtype == np.uint8
    scale = BoundsScale(obs_spec(spaces.Dict(image=image))["image"])
    codes = torch.tensor([[[[0, 0, 0], [10, 5, 2], [5, 0, 1]]]], dtype=torch.float32).expand(1, 7, 3, 3)
    expected = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [0, -1, 0]]).expand(1, 7, 3, 3)
    torch.testing.assert_close(scale(codes[:, :, [0, 1, 2, 0, 1, 2, 0]])[:, :, :3], expected)


def test_the_maker_puts_it_together_and_the_encoder_reads_it() -> None:
    make = partial(make_minigrid, "BabyAI-GoToObj-v0", max_words=6)
    spec, action_spec, name = check_env(make)
    assert name == "BabyAI-GoToObj-v0" and action_spec.nvec == (7,)
    assert {key: array.shape for key, array in spec.items()} == {"direction": (), "image": (7, 7, 3), "mission": (6,)}
    assert spec["mission"].nvec == (len(WORDS) + 2,) * 6
    assert default_tstep_encoder(spec) is MixedTstepEncoder
    encoder = MixedTstepEncoder(spec, rl2_dim=8, token_keys=("mission",), pad_token=PAD)
    observation, _ = make().reset(seed=0)
    assert words_of(observation["mission"])[:3] == ["go", "to", "the"]
    batch = {key: torch.as_tensor(np.asarray(value))[None, None] for key, value in observation.items()}
    other = {**batch, "mission": torch.zeros_like(batch["mission"])}
    encoded, unlike = (encoder(obs, torch.zeros(1, 1, 8)) for obs in (batch, other))
    assert encoded.shape == (1, 1, encoder.emb_dim)
    assert not torch.allclose(encoded, unlike), "the mission makes no difference"


@pytest.mark.parametrize(
    ("kwargs", "high"), [({}, [10, 5, 2]), ({"fully_observed": True}, [10, 5, 3]), ({"one_hot": True}, [1, 1, 1])]
)
def test_bounds_follow_the_view(kwargs: dict[str, Any], high: list[int]) -> None:
    env = make_minigrid("MiniGrid-DoorKey-5x5-v0", **kwargs)
    space = env.observation_space["image"]  # type: ignore[index]
    assert space.high[0, 0, :3].tolist() == high and space.low.max() == 0
    largest = np.zeros_like(space.high)
    for seed in range(20):
        largest = np.maximum(largest, env.reset(seed=seed)[0]["image"])
    assert (largest <= space.high).all()
    assert kwargs != {"fully_observed": True} or largest[..., 2].max() == 3, "the agent's direction was not seen"


def test_a_mission_that_is_always_the_same_can_be_left_out() -> None:
    env = make_minigrid("MiniGrid-MemoryS7-v0", mission=False)
    observation, _ = env.reset(seed=0)
    assert sorted(observation) == sorted(env.observation_space.spaces) == ["direction", "image"]  # type: ignore[attr-defined]
    assert check_env((make_minigrid, {"mission": False}))[2] == "MiniGrid-MemoryS7-v0"


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_every_mission_is_of_known_words_and_fits() -> None:
    """Of one seed of every level of MiniGrid and BabyAI but WFC's, which want packages of their own."""
    levels = [name for name in gym.registry if re.match("(MiniGrid-(?!WFC)|BabyAI-)", name)]
    assert len(levels) > 150
    for level in levels:
        mission = gym.make(level, disable_env_checker=True).reset(seed=1)[0]["mission"]
        words = re.findall(r"\w+|[^\w\s]", mission.lower())
        assert len(words) <= MAX_WORDS and set(words) <= set(WORDS), (level, mission)


def test_one_hot_is_of_the_partial_view() -> None:
    with pytest.raises(ValueError, match="one_hot=True: must be False with fully_observed"):
        make_minigrid(one_hot=True, fully_observed=True)


def test_the_longest_sentence_of_babyai_fits() -> None:
    part = "put the red ball in front of you next to the blue box in front of you"
    sentence = f"{part} and {part} after you {part} and {part}"
    assert len(sentence.split()) <= MAX_WORDS
    assert set(sentence.split()) <= set(WORDS)
