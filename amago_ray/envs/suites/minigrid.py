"""MiniGrid and BabyAI: missions as tokens of a fixed vocabulary, and views whose bounds are those of their codes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gin
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation
from numpy.typing import NDArray

from amago_ray.envs.builtin.arguments import check_flag, check_integer
from amago_ray.envs.suites.extras import require

PAD, UNKNOWN = 0, 1
MAX_WORDS = 80  # BabyAI's grammar ends at two pairs of "put the red ball in front of you next to the ...": 76

# Every word of the missions of MiniGrid and BabyAI 3, and its colours and things. Tokens are places in this list, so
# new words go to its end: a policy that was trained before keeps its meaning.
WORDS: tuple[str, ...] = (
    *(",", "a", "after", "agent", "an", "and", "at", "avoid", "ball", "behind", "blue", "box", "door", "end", "fetch"),
    *("find", "floor", "from", "front", "get", "go", "goal", "green", "grey", "hallway", "in", "key", "lava", "left"),
    *("matching", "must", "near", "next", "object", "of", "on", "open", "opening", "pick", "purple", "put", "reach"),
    *("red", "right", "room", "rooms", "square", "the", "then", "to", "traverse", "unlock", "up", "use", "wall"),
    *("yellow", "you", "your"),
)


class MissionTokens(gym.ObservationWrapper):
    """Replaces the text of one entry of Dict observations by tokens, (max_words,): MultiDiscrete.

    Token 0 fills up the end, 1 stands for every word that is not in `words`, and 2 + i for words[i]. Case is ignored;
    punctuation marks are words of their own. `MixedTstepEncoder` reads such an array with token_keys = ("mission",) and
    pad_token = 0.

    key: of the text. Raises ValueError for an environment without such an entry, for words that are not distinct, and,
    in `reset` and `step`, for a text of more than `max_words` words.
    """

    def __init__(
        self, env: gym.Env, max_words: int = MAX_WORDS, words: Sequence[str] = WORDS, key: str = "mission"
    ) -> None:
        super().__init__(env)
        self.max_words = check_integer("max_words", max_words, at_least=1)
        if len(set(words)) < len(words):
            raise ValueError(f"words={list(words)!r}: must be distinct")
        self._token_of = {word: 2 + i for i, word in enumerate(words)}
        self._key = key
        space = env.observation_space
        # MiniGrid's own space of missions is no spaces.Text.
        if not isinstance(space, spaces.Dict) or key not in space.spaces or space[key].dtype != np.dtype(str):
            raise ValueError(f"key={key!r}: must be a text of a Dict observation, and the space is {space}")
        tokens = spaces.MultiDiscrete([2 + len(words)] * self.max_words)
        self.observation_space = spaces.Dict({**space.spaces, key: tokens})
        self._last: tuple[str, NDArray[np.int64]] | None = None

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        text = observation[self._key]
        if self._last is None or self._last[0] != text:  # mostly the mission of the step before
            self._last = (text, self._tokens(text))
        return {**observation, self._key: self._last[1].copy()}

    def _tokens(self, text: str) -> NDArray[np.int64]:
        found = re.findall(r"\w+|[^\w\s]", text.lower())
        if len(found) > self.max_words:
            raise ValueError(f"max_words={self.max_words}: must be at least {len(found)} for the mission {text!r}")
        tokens = np.full(self.max_words, PAD, dtype=np.int64)
        tokens[: len(found)] = [self._token_of.get(word, UNKNOWN) for word in found]
        return tokens


class ImageBounds(gym.Wrapper):
    """Declares what the bytes of one entry of Dict observations can be: nothing of the observations changes.

    MiniGrid's views hold codes from 0 to 10 and declare 0 to 255, as pictures do; encoders that scale by bounds would
    make one number of all of them.

    high: largest number, broadcast to the entry's shape; the least one is 0.
    """

    def __init__(self, env: gym.Env, high: Sequence[int] | int, key: str = "image") -> None:
        super().__init__(env)
        space = env.observation_space
        image = space.spaces.get(key) if isinstance(space, spaces.Dict) else None
        if not isinstance(space, spaces.Dict) or not isinstance(image, spaces.Box):
            raise ValueError(f"key={key!r}: must be a Box of a Dict observation, and the space is {space}")
        largest = np.broadcast_to(np.asarray(high, dtype=np.uint8), image.shape)
        bounded = spaces.Box(np.zeros_like(largest), largest, dtype=np.uint8)
        self.observation_space = spaces.Dict({**space.spaces, key: bounded})


@gin.configurable
def make_minigrid(
    env_id: str = "MiniGrid-MemoryS7-v0",
    max_words: int = MAX_WORDS,
    one_hot: bool = False,
    fully_observed: bool = False,
    mission: bool = True,
    **kwargs: Any,
) -> gym.Env:
    """An environment of MiniGrid or BabyAI, with Dict observations "image", "direction" and "mission".

    "image": (view, view, 3) uint8, code of the thing, of its colour and of its state. "direction": Discrete(4).
    "mission": tokens, as `MissionTokens` says.

    env_id: gymnasium id, such as "BabyAI-GoToLocal-v0"; metrics are grouped by it. max_words: of the longest mission.
    one_hot: codes as 0 and 1, (view, view, 20), of what the agent sees only: minigrid's encoding has no place for the
    direction of an agent. fully_observed: the whole grid, and not what the agent sees. mission: False leaves it out,
    where it is always the same. kwargs: as for `gymnasium.make`.

    Raises ModuleNotFoundError without the package minigrid, ValueError for one_hot with fully_observed.
    Source: Chevalier-Boisvert et al. 2023, arXiv 2306.13831; BabyAI: 2019, arXiv 1810.08272.
    """
    if check_flag("one_hot", one_hot) and check_flag("fully_observed", fully_observed):
        raise ValueError("one_hot=True: must be False with fully_observed=True, which minigrid cannot encode so")
    require("minigrid", "minigrid")
    wrappers, constants = require("minigrid.wrappers", "minigrid"), require("minigrid.core.constants", "minigrid")
    env = gym.make(env_id, **kwargs)
    if fully_observed:
        env = wrappers.FullyObsWrapper(env)
    if one_hot:
        env = wrappers.OneHotPartialObsWrapper(env)
    # Of an agent in full view, the state is its direction: 0 to 3.
    states = max(*constants.STATE_TO_IDX.values(), 3 if fully_observed else 0)
    codes = [max(constants.OBJECT_TO_IDX.values()), max(constants.COLOR_TO_IDX.values()), states]
    env = ImageBounds(env, 1 if one_hot else codes)
    if not check_flag("mission", mission):
        return FilterObservation(env, ["image", "direction"])
    return MissionTokens(env, max_words)
