"""Settings that the package hands to its parts itself: refused where somebody binds them, harmless in old records."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest
from acting_cases import make_run

from amago_ray import config, load_policy
from amago_ray.agent import Agent, AgentSpec, MultiTaskAgent
from amago_ray.agent.optimizers import AdamWRel, build_optimizer
from amago_ray.config.handed import KINDS, SINGLE, remedies
from amago_ray.config.registry import parameters_of, registry
from amago_ray.config.text import AS_CONFIGURED
from amago_ray.envs.builtin import Identity
from amago_ray.envs.exploration import BilevelEpsilonGreedy, EpsilonGreedy, TMazeExploration
from amago_ray.nets.traj_encoders import GRUTrajEncoder
from amago_ray.nets.tstep_encoders import CNNTstepEncoder, FFTstepEncoder
from amago_ray.specs import ActionSpec, ArraySpec

OF_THE_USER = {"rollout_horizon", "horizon"}  # required, and given in gin


@gin.configurable
class MyGRU(GRUTrajEncoder):
    pass


@gin.configurable
class MyAgent(Agent):
    def __init__(self, *args: Any, bonus: float = 0.1, **settings: Any):
        super().__init__(*args, **settings)


@pytest.mark.parametrize(
    ("binding", "instead"),
    [
        ("NCritics.num_critics = 2", "set Agent.num_critics"),
        ("NCritics.gammas = [0.9]", "set Agent.gamma, and Multigammas"),
        ("NCritics.num_outputs = 3", "take NCriticsTwoHot"),
        ("amago_ray.nets.critics.NCriticsTwoHot.num_critics = 2", "set Agent.num_critics"),
        ("Agent.traj_encoder_type = @GRUTrajEncoder", "set Experiment.traj_encoder_type"),
        ("Agent.tstep_encoder_type = @FFTstepEncoder", "set Experiment.tstep_encoder_type"),
        ("MultiTaskAgent.max_seq_len = 8", "set Experiment.max_seq_len"),
        ("MultiTaskAgent.action_mask_key = 'legal'", "set Experiment.action_mask_key"),
        ("Actor.num_gammas = 3", "set Multigammas"),
        ("Actor.state_dim = 3", "the trajectory encoder decides"),
        ("FFTstepEncoder.rl2_dim = 3", "the environments decide"),
        ("GRUTrajEncoder.max_seq_len = 3", "set Experiment.max_seq_len"),
        ("EpsilonGreedy.num_envs = 3", "set Experiment.parallel_actors"),
        ("EpsilonGreedy.seed = 3", "set Experiment.seed"),
        ("PopArt.enabled = False", "set Agent.popart"),
        ("PopArtLayer.enabled = False", "set Agent.popart"),
        ("NatureishCNN.activation = 'relu'", "set CNNTstepEncoder.activation"),
        ("MLP.d_hidden = 3", "such as FFTstepEncoder.d_hidden"),
        ("DrQv2Aug.fraction = 0.5", "set CNNTstepEncoder.aug_pct_of_batch"),
        ("AdamWRel.lr = 0.5", "set Experiment.learning_rate"),
        ("make_envpool.num_envs = 4", "set Experiment.parallel_actors"),
        ("MyGRU.max_seq_len = 3", "set Experiment.max_seq_len"),
        ("MyAgent.max_seq_len = 3", "set Experiment.max_seq_len"),
    ],
)
def test_what_would_set_nothing_is_refused_with_what_to_set(binding: str, instead: str, tmp_path: Path) -> None:
    name = ".".join(binding.partition(" =")[0].replace("PopArtLayer", "PopArt").split(".")[-2:])
    with pytest.raises(ValueError) as error:
        config.load([], [binding])
    answer = str(error.value)
    assert answer.startswith(f"{name} = ") and instead in answer and "\n" not in answer
    (tmp_path / "a.gin").write_text(binding)
    with pytest.raises(ValueError, match=r"a\.gin line 1\)$"):
        config.load([tmp_path / "a.gin"])


def test_settings_of_such_classes_are_taken() -> None:
    config.load([], ["MyAgent.bonus = 0.5", "MyGRU.d_hidden = 8", "NCritics.d_hidden = 8", "MLP.dropout_p = 0.1"])
    config.load([], ["mine/NCritics.num_critics = 2", "Agent.critic_type = @mine/NCritics"])  # code of one's own


@pytest.mark.parametrize("setting", ["SigmaReparam.d_in = 4"])
def test_what_gin_is_told_to_refuse_is_said_in_words(setting: str) -> None:
    with pytest.raises(ValueError, match="SigmaReparam has no setting 'd_in'"):
        config.load([], [setting])


def test_records_of_before_are_read(tmp_path: Path) -> None:
    """They have all that was bound, such lines too: runs go on, and policies act, as they did."""
    experiment = make_run(tmp_path, lambda: Identity("discrete", 4), "GRUTrajEncoder")
    folder, lines = experiment.directory.root, ("NCritics.num_critics = 7", "GRUTrajEncoder.max_seq_len = 3")
    text = experiment.directory.config.read_text()
    assert f"# {AS_CONFIGURED}\n" in text and not any(line in text for line in lines)
    experiment.directory.config.write_text(text.replace("Actor.d_hidden", "\n".join([*lines, "Actor.d_hidden"]), 1))
    obs = np.zeros(5, np.float32)
    assert load_policy(folder, sample=False).act(obs)[0] in range(4)
    gin.clear_config()
    config.load([experiment.directory.config], ["Experiment.make_train_env = 'CartPole-v1'"])
    assert gin.query_parameter("NCritics.num_critics") == 7  # for code of one's own that leaves it to gin
    config.restore(config.snapshot())
    with pytest.raises(ValueError, match="set Agent.num_critics"):
        config.load([experiment.directory.config], ["NCritics.num_critics = 2"])


IMAGE, NUMBERS = ArraySpec((40, 40, 3), "uint8"), ArraySpec((3,), "float32")
PARTS = {
    "discrete": (Agent, FFTstepEncoder, "Actor", "NCritics", NUMBERS, "Discrete"),
    "continuous": (MultiTaskAgent, CNNTstepEncoder, "ResidualActor", "NCriticsTwoHot", IMAGE, "GMM"),
}
ACTIONS = {
    "discrete": ActionSpec("discrete", (), "int64", 3, (3,)),
    "continuous": ActionSpec("continuous", (2,), "float32", 2),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("encoder", ["FFTrajEncoder", "GRUTrajEncoder", "TformerTrajEncoder", "MambaTrajEncoder"])
def test_what_is_refused_would_have_set_nothing(kind: str, encoder: str) -> None:
    agent_type, tstep_encoder, actor, critics, obs, dist = PARTS[kind]
    config.load(
        [],
        [
            f"Agent.actor_type = @{actor}",
            f"MultiTaskAgent.critic_type = @{critics}",
            f"{actor}.policy_output_type = @{dist}",
            "CNNTstepEncoder.drqv2_aug = True",
            "AdamWRel.reset_interval = 5",
        ],
    )
    for selector, configurable in registry().items():
        for argument in (name for remedy in remedies(configurable.wrapped) for name in remedy):
            if argument in parameters_of(selector) and not (
                configurable.denylist and argument in configurable.denylist
            ):
                gin.bind_parameter(f"{selector}.{argument}", "nobody reads it")
    traj_encoder = gin.get_configurable(encoder)
    agent = AgentSpec({"a": obs}, ACTIONS[kind], 4, tstep_encoder, traj_encoder, agent_type, 0).build()
    build_optimizer(AdamWRel, agent.trainable_params, 0.1, 0.1)
    for exploration, settings in (
        (EpsilonGreedy, {}),
        (BilevelEpsilonGreedy, {"rollout_horizon": 3}),
        (TMazeExploration, {"horizon": 3}),
    ):
        exploration(2, ACTIONS[kind], 0, **settings)


def test_all_that_parts_must_be_given_is_known() -> None:
    """Of every part of the package, what has no default: the package gives it, or the user has to."""
    config.load([])
    seen = set()
    for selector, configurable in registry().items():
        made = configurable.wrapped
        handed = {name for remedy in remedies(made) for name in remedy}
        if not selector.startswith("amago_ray.") or not handed:
            continue
        parameters = inspect.signature(made).parameters.values()
        required = {
            each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD
        }
        assert required - OF_THE_USER <= handed, selector
        seen |= {cls.__name__ for cls in inspect.getmro(made)} if inspect.isclass(made) else {made.__name__}
    assert seen >= KINDS.keys() | SINGLE.keys()


@pytest.mark.parametrize(
    "binding",
    [
        "Experiment.traj_encoder_type = @GRUTrajEncoder()",
        "Experiment.agent_type = @MultiTaskAgent()",
        "Experiment.exploration_wrapper_type = @EpsilonGreedy()",
        "Agent.critic_type = @NCritics()",
        "Agent.optimizer_type = @AdamWRel()",
        "encoder = @GRUTrajEncoder()",
        "Agent.fbc_filter_func = @exp_filter()",
    ],
)
def test_a_class_that_is_called_is_refused(binding: str) -> None:
    value = binding.partition(" = ")[2]
    what = "function" if "filter" in value else "class"
    with pytest.raises(ValueError) as error:
        config.load([], [binding])
    assert str(error.value) == f"{binding}: the {what} itself is meant, {value[:-2]} without ()"
