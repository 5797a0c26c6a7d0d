"""Spaces come back from a file as they were."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from acting_cases import ACTION_SPACES, OBSERVATION_SPACES
from gymnasium import spaces

from amago_ray.envs.saved_spaces import read_spaces, write_spaces
from amago_ray.envs.spaces import ActionConverter, ObsConverter

FURTHER = (
    spaces.Box(0, 255, (84, 84, 3), np.uint8),
    spaces.Box(np.array([[-1.0, 0.1], [-1.0, 0.1]]), np.array([[np.inf, 0.3], [np.inf, 0.3]]), dtype=np.float64),
    spaces.Box(-0.1, 0.7, (), np.float16),
    spaces.Box(-(2**62), 2**62, (2,), np.int64),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Discrete(3, dtype=np.int32),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3)), ("m", spaces.Dict(k=spaces.Box(0, 1, (1,))))]),
)


@pytest.mark.parametrize("space", [*OBSERVATION_SPACES.values(), *ACTION_SPACES.values(), *FURTHER], ids=str)
def test_they_come_back_equal(space: gym.Space, tmp_path: Path) -> None:
    write_spaces(tmp_path / "spaces.json", space, spaces.Discrete(2, start=1))
    read, action = read_spaces(tmp_path / "spaces.json")
    assert read == space and action == spaces.Discrete(2, start=1)
    assert read.dtype == space.dtype
    assert ObsConverter(read).spec == ObsConverter(space).spec
    assert [s.bounds for s in ObsConverter(read).spec.values()] == [s.bounds for s in ObsConverter(space).spec.values()]
    assert list(ObsConverter(read).spec) == list(ObsConverter(space).spec)


def test_bounds_of_actions_come_back_to_the_bit(tmp_path: Path) -> None:
    space = spaces.Box(np.float32([0.1, 1 / 3]), np.float32([0.7, 1e7]))
    write_spaces(tmp_path / "spaces.json", spaces.Discrete(2), space)
    _, read = read_spaces(tmp_path / "spaces.json")
    stored = np.float32([[0.3, -0.123456]])
    np.testing.assert_array_equal(ActionConverter(read).to_env(stored), ActionConverter(space).to_env(stored))


def test_an_image_takes_two_numbers(tmp_path: Path) -> None:
    write_spaces(tmp_path / "spaces.json", FURTHER[0], spaces.Discrete(2))
    assert len((tmp_path / "spaces.json").read_text()) < 500


def test_broken_files_and_foreign_spaces(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be kept: use Box, Discrete"):
        write_spaces(tmp_path / "spaces.json", spaces.Text(4), spaces.Discrete(2))
    for text in ("{", '{"observation": {"space": "Text"}}', '{"observation": {"space": "Discrete"}}', "[]"):
        (tmp_path / "spaces.json").write_text(text)
        with pytest.raises(ValueError, match=r"spaces\.json holds no spaces that can be read"):
            read_spaces(tmp_path / "spaces.json")
    with pytest.raises(ValueError, match="holds no spaces that can be read: FileNotFoundError"):
        read_spaces(tmp_path / "none.json")
