"""The specification's code blocks run as they are written there, with `amago_ray` in place of `amago`."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from amago_ray.envs.builtin import Counting

CHOICES = {
    "tstep encoder": """
    from amago.nets.tstep_encoders import CNNTstepEncoder

    experiment = amago.Experiment(
        make_train_env=make_env,
        ...,
        tstep_encoder_type=CNNTstepEncoder,
    )
""",
    "trajectory encoder": """
    from amago.nets.traj_encoders import MambaTrajEncoder

    experiment = amago.Experiment(
        ...,
        traj_encoder_type=MambaTrajEncoder,
    )
""",
    "agent": """
    from amago.agent import MultiTaskAgent

    experiment = amago.Experiment(
        ...,
        agent_type=MultiTaskAgent,
    )
""",
}

IMPORTS = [
    "from amago.nets.tstep_encoders import TstepEncoder, FFTstepEncoder, CNNTstepEncoder",
    "from amago.nets.traj_encoders import TrajEncoder, FFTrajEncoder, GRUTrajEncoder",
    "from amago.nets.traj_encoders import MambaTrajEncoder, TformerTrajEncoder",
    "from amago.agent import Agent, MultiTaskAgent",
    "from amago.experiment import Experiment",
    "import amago; amago.Experiment",
]

TRAINING = """
    experiment = amago.Experiment(
        # final required args we haven't mentioned
        run_name="some_name", # a name used for checkpoints and logging
        ckpt_base_dir="some/place/", # path to checkpoint directory
        val_timesteps_per_epoch=1000, # give actors enough time to finish >= 1 episode
        max_seq_len=128, # maximum sequence length for the TrajEncoder
        ...
    )
    experiment.start()
    experiment.learn()
"""


def runnable(block: str, rest: str = "**rest") -> str:
    """A block as Python: `...` becomes `rest`, which keyword arguments may follow, and `amago` is this package."""
    code = re.sub(r"\bamago\b", "amago_ray", re.sub(r"^    ", "", block, flags=re.MULTILINE))
    return "import amago_ray\n" + re.sub(r"^(\s+)\.\.\.", rf"\1{rest}", code, flags=re.MULTILINE)


@pytest.mark.parametrize("line", IMPORTS)
def test_names_are_where_the_specification_has_them(line: str) -> None:
    exec(runnable(line), {})


@pytest.mark.parametrize("name", CHOICES)
def test_choosing_the_parts(name: str) -> None:
    rest = {"run_name": "a", "max_seq_len": 8} | ({} if "make_env" in CHOICES[name] else {"make_train_env": Counting})
    names: dict[str, Any] = {"make_env": Counting, "rest": rest}
    exec(runnable(CHOICES[name]), names)
    assert names["experiment"].make_train_env is Counting
    (chosen,) = re.findall(r"(\w+_type)=(\w+)", CHOICES[name])
    assert getattr(names["experiment"], chosen[0]) is names[chosen[1]]


@pytest.mark.usefixtures("shared_processes")
def test_start_and_learn(
    ray_instance: None, tiny_networks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amago_ray.nets.traj_encoders import GRUTrajEncoder

    monkeypatch.chdir(tmp_path)
    rest = {
        "make_train_env": partial(Counting, 6),
        "traj_encoder_type": GRUTrajEncoder,
        "epochs": 3,
        "parallel_actors": 2,
        "train_timesteps_per_epoch": 12,
        "train_batches_per_epoch": 2,
        "batch_size": 4,
        "ckpt_interval": 2,
        "replay_capacity_gb": 0.02,
        "learner_cpus": 1,
        "verbose": False,
    }
    names: dict[str, Any] = {"rest": rest}
    try:
        exec(runnable(TRAINING), names)
    finally:
        if "experiment" in names:
            names["experiment"].close()
    root = tmp_path / "some" / "place" / "some_name"
    for path in (
        "config.txt",
        "wandb_logs",
        "ckpts/training_states/some_name_epoch_0",
        "ckpts/training_states/some_name_epoch_2",
        "ckpts/latest/policy.pt",
        "ckpts/policy_weights/policy_epoch_0.pt",
        "ckpts/policy_weights/policy_epoch_2.pt",
    ):
        assert (root / path).exists(), path
