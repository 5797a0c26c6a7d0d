"""Steps of a policy that are compiled for a processor act as uncompiled ones do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import ACTION_SPECS, OBS_SPEC, gru, tformer, tstep_encoder
from gpu.cases import ENCODERS, agent_spec
from policy_step_cases import (
    InTwoPlaces,
    N,
    OwnEncoder,
    Reach,
    Remembering,
    Rollouts,
    act,
    assert_same_trajectories,
    decided,
    policy_of,
)
from small_agents import small_agent_spec

from amago_ray.agent.flat_weights import flatten_state, load_flat_state
from amago_ray.messages import Trajectory, Weights
from amago_ray.nets import compiled_files
from amago_ray.nets.attention import SlidingSinkAttention
from amago_ray.nets.key_value_cache import SLOTS_AT_A_TIME, CompilableCache
from amago_ray.nets.sigma_reparam import SigmaReparam
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TrajEncoder
from amago_ray.rollout import compiled_code, compiled_step
from amago_ray.rollout.compiled_step import CannotCompile, CompiledPolicyStep
from amago_ray.rollout.policy_step import PolicyStep, make_policy_step
from amago_ray.rollout.random_stream import TorchRandomStream
from amago_ray.rollout.worker import RolloutConfig, RolloutWorker
from amago_ray.specs import ArraySpec

pytestmark = pytest.mark.processes  # a C++ compiler
LONG = 2 * SLOTS_AT_A_TIME + 5  # of a cache that is read in three sizes, the last of which is no whole number of them


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """So that nothing is there that another run has compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


CASES = {
    "gru": ("continuous", gru, 16),
    "mamba": ("multidiscrete", ENCODERS["mamba"], 16),
    "transformer": ("discrete", partial(tformer, n_layers=2), LONG),
    "sinks, rope, plain layers": (
        "multibinary",
        partial(
            tformer,
            attention_type=partial(SlidingSinkAttention, window_size=3, sink_size=1),
            pos_emb="rope",
            sigma_reparam=False,
            norm="rmsnorm",
        ),
        SLOTS_AT_A_TIME - 3,
    ),
}


# Of the first case: what is compiled for one test, which takes ten seconds, is there for others.
SHARED = agent_spec(kind="continuous", encoder=gru, max_seq_len=16)


@pytest.mark.parametrize("case", CASES)
def test_compiled_steps_act_alike(case: str) -> None:
    """The same draws for longer than the memory, with rollouts that begin in between, new weights, another temperature
    and illegal actions."""
    kind, encoder, length = CASES[case]
    masked = kind == "discrete"
    obs_spec = {**OBS_SPEC, "legal": ArraySpec((4,), "int8")} if masked else OBS_SPEC
    spec = agent_spec(
        kind=kind, encoder=encoder, obs_spec=obs_spec, action_mask_key="legal" if masked else None, max_seq_len=length
    )
    policies = [policy_of(spec, "cpu") for _ in range(2)]
    weights = [flatten_state(decided(spec.build().policy, seed)) for seed in range(3)]
    for buffer in weights:  # every weight another one, statistics of inputs too
        numbers = buffer.view(np.float32)
        numbers += np.random.default_rng(len(buffer)).uniform(0.0, 0.01, len(numbers)).astype(np.float32)
    plain = PolicyStep(policies[0], ACTION_SPECS[kind], N, "cpu", True)
    random = torch.get_rng_state()
    compiled = CompiledPolicyStep(policies[1], ACTION_SPECS[kind], N, True, obs_spec)
    assert torch.equal(torch.get_rng_state(), random)
    runs, sizes = [], set()
    for step, policy in ((plain, policies[0]), (compiled, policies[1])):
        rollouts, legal_ones, drawn = iter(Rollouts(kind, 0.02)), np.random.default_rng(1), []
        step.begin_all()
        with TorchRandomStream(3):
            for t in range(3 * length):
                if t % length == 0:
                    load_flat_state(policy, weights[t // length])
                    step.weights_changed()
                policy.temperature = 1.0 if t < 2 * length else 0.5
                fresh, obs, *more = next(rollouts)
                if fresh.any():
                    step.begin(fresh)
                legal = legal_ones.integers(0, 2, (N, 4)).astype(np.int8)
                legal[:, 1] = 1
                drawn.append(step.act({**obs, "legal": legal} if masked else obs, *more).copy())
                if isinstance(step._memory, CompilableCache):
                    sizes.add(len(step._memory.slots))
                assert drawn[-1].dtype == ACTION_SPECS[kind].dtype
                assert not masked or legal[np.arange(N), drawn[-1]].all()
        runs.append(np.stack(drawn))
    if kind == "continuous":
        np.testing.assert_allclose(*runs, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0].reshape(len(runs[0]), -1), axis=0)) > 5
    if case == "transformer":
        assert sizes == {SLOTS_AT_A_TIME, 2 * SLOTS_AT_A_TIME, LONG}


def test_what_was_compiled_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By policies of other weights; not where it is damaged. What was right is what the compiler then makes."""
    compile_it, load_it = compiled_code.compile_program, compiled_code._load
    made, loaded = [], []
    monkeypatch.setattr(compiled_code, "compile_program", lambda *x: (made.append(x), compile_it(*x)))
    monkeypatch.setattr(compiled_code, "_load", lambda path: (loaded.append(path), load_it(path))[1])

    def actions(seed: int, compiled: bool) -> np.ndarray:
        policy = decided(policy_of(SHARED, "cpu"), seed)
        step: PolicyStep = PolicyStep(policy, SHARED.action_spec, N, "cpu", True)
        if compiled:
            step = CompiledPolicyStep(policy, SHARED.action_spec, N, True, SHARED.obs_spec)
        step.begin_all()
        obs = {name: np.ones((N, *x.shape), x.dtype) for name, x in OBS_SPEC.items()}
        with TorchRandomStream(3):
            return step.act(obs, np.ones((N, 3), np.float32), np.zeros(N, np.int64))

    counts = []
    for seed, damaged in ((0, False), (1, False), (1, True)):
        if damaged:  # and there is what a killed process had begun
            right = loaded[-1].read_bytes()
            loaded[-1].write_bytes(right[:1000])
            loaded[-1].with_suffix(".unfinished").mkdir()

            def compile_again(program: Any, package_path: str, inductor_configs: Any, right: bytes = right) -> str:
                Path(package_path).write_bytes(right)
                return package_path

            monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compile_again)
        np.testing.assert_allclose(actions(seed, True), actions(seed, False), rtol=1e-4, atol=1e-5)
        counts.append(len(made))
    assert counts[1] == counts[0] and counts[2] == counts[0] + 1
    assert loaded[-1].read_bytes() == right
    assert {path.suffix for path in compiled_files.code_folder().iterdir()} - {".so"} == {".pt2", ".lock"}


def test_a_compiler_that_puts_weights_into_code_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's does so with up to eight numbers, unless it is told not to."""
    monkeypatch.setitem(compiled_code.OPTIONS, "always_keep_tensor_constants", False)
    spec = agent_spec(kind="continuous", tstep_encoder=partial(tstep_encoder, d_hidden=8, d_output=8))
    with pytest.raises(CannotCompile, match="its numbers would be off by"):
        CompiledPolicyStep(policy_of(spec, "cpu"), spec.action_spec, 4, True, spec.obs_spec)


def _refuse(*_: Any) -> None:
    raise RuntimeError("no C++ compiler\n  found")


def test_what_cannot_be_compiled_is_told_and_acting_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_code, "compile_program", _refuse)
    spec = agent_spec(kind="continuous")
    policy = policy_of(spec, "cpu")
    with pytest.warns(UserWarning, match="uncompiled: RuntimeError: no C\\+\\+ compiler found$") as warned:
        step = make_policy_step(policy, spec.action_spec, spec.obs_spec, 4, "cpu", False, compile_acting="auto")
    assert type(step) is PolicyStep and len(warned) == 1


@pytest.mark.parametrize(("stranger", "mode"), [(1, 0o700), (0, 0o777)])
def test_what_others_may_write_is_not_run(
    stranger: int, mode: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiled_files.os, "getuid", lambda: tmp_path.stat().st_uid + stranger)
    (tmp_path / compiled_files.FOLDER).mkdir()
    (tmp_path / compiled_files.FOLDER).chmod(mode)
    spec = agent_spec()
    with pytest.raises(CannotCompile, match="others than you may write into .*; set TORCHINDUCTOR_CACHE_DIR"):
        CompiledPolicyStep(policy_of(spec, "cpu"), spec.action_spec, 4, True, spec.obs_spec)


def test_arrays_are_made_to_what_was_compiled() -> None:
    """The code does not look at what it is given: a test environment may have other dtypes, and no other shapes."""
    policy = policy_of(SHARED, "cpu")
    plain = PolicyStep(policy, SHARED.action_spec, N, "cpu", True)
    step = CompiledPolicyStep(policy, SHARED.action_spec, N, True, SHARED.obs_spec)
    rl2, time_idx = np.ones((N, 3), np.float32), np.zeros(N, np.int64)
    obs = {name: np.ones((N, *x.shape), "int8") for name, x in OBS_SPEC.items()}
    plain.begin_all()
    actions = []
    for each in (plain, step):
        with TorchRandomStream(3):
            actions.append(each.act(obs, rl2, time_idx).copy())
    np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-5)
    name = next(name for name, x in OBS_SPEC.items() if x.shape)
    wide = {**obs, name: np.ones((N, *(2 * width for width in OBS_SPEC[name].shape)), "float32")}
    with pytest.raises(ValueError, match=f"observation {name} has shape .*, and the policy is made for"):
        step.act(wide, rl2, time_idx)


class TwoPlaces(GRUTrajEncoder):
    """One reparametrised layer is used twice."""

    def __init__(self, tstep_dim: int, max_seq_len: int):
        super().__init__(tstep_dim, max_seq_len, d_hidden=16, n_layers=1, d_output=12)
        self.one = self.two = SigmaReparam(12, 12)

    def step(self, seq_BD: torch.Tensor, time_idx_B: torch.Tensor, memory: Any) -> Any:
        state_BD, memory = super().step(seq_BD, time_idx_B, memory)
        return self.two(self.one(state_BD)), memory


class Scaled(TwoPlaces):
    """Which no plain layer can do."""

    def step(self, seq_BD: torch.Tensor, time_idx_B: torch.Tensor, memory: Any) -> Any:
        state_BD, memory = GRUTrajEncoder.step(self, seq_BD, time_idx_B, memory)
        return self.one(state_BD, torch.ones(12)), memory


def acts_alike(encoder: type[TrajEncoder], told: str | None) -> None:
    """By a step that is compiled; or, where something is `told`, that is not."""
    spec = agent_spec(kind="continuous", encoder=encoder)
    policy = decided(policy_of(spec, "cpu"), 0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        step = make_policy_step(policy, spec.action_spec, spec.obs_spec, N, "cpu", False, compile_acting="always")
    assert [str(x.message)[:200] for x in warned if told is None or told not in str(x.message)] == []
    assert len(warned) == (told is not None)
    assert isinstance(step, CompiledPolicyStep) == (told is None)
    plain = PolicyStep(policy, spec.action_spec, N, "cpu", False)
    for x in (plain, step):
        x.begin_all()
    actions = [act(x, iter(Rollouts("continuous")), 9) for x in (plain, step)]
    np.testing.assert_allclose(*actions, rtol=1e-4, atol=1e-5)


class Constants(TwoPlaces):
    """And tensors that are neither parameters nor buffers: as an attribute, in a list, and made by a step."""

    first = 0.5

    def __init__(self, tstep_dim: int, max_seq_len: int):
        super().__init__(tstep_dim, max_seq_len)
        self.scale = torch.linspace(self.first, 2, 12)
        self.shifts = [torch.linspace(-self.first, 1, 12)]

    def step(self, seq_BD: torch.Tensor, time_idx_B: torch.Tensor, memory: Any) -> Any:
        state_BD, memory = super().step(seq_BD, time_idx_B, memory)
        return state_BD * self.scale + self.shifts[0] + torch.tensor([0.25, -0.5] * 6), memory


@pytest.mark.parametrize("first", [0.5, -1.0])
def test_modules_and_constants_of_others(first: float) -> None:
    """Also by code that was compiled for other ones."""
    acts_alike(type("Own", (Constants,), {"first": first}), None)


def test_a_module_of_others_that_cannot_be_folded() -> None:
    acts_alike(Scaled, "acts uncompiled: TypeError: ")


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("shifted", None),
        ("counted", "its memory holds a int that is no tensor"),
        ("made by the first step", "its memory is made of 1 parts before a step and 2 after it"),
        ("growing", "tensors of its memory change their shape"),
    ],
)
def test_memories_of_others_act_as_they_would(way: str, told: str | None) -> None:
    """Compiled, or told that they cannot be."""
    acts_alike(type("Own", (Remembering,), {"way": way}), told)


def test_a_memory_that_begins_with_one_tensor_in_two_places() -> None:
    acts_alike(InTwoPlaces, None)


def test_who_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(compiled_step, "CompiledPolicyStep", lambda *x: made.append(x) or "compiled")
    known, own = (agent_spec(encoder=x).build().policy for x in (GRUTrajEncoder, OwnEncoder))
    spec = ACTION_SPECS["discrete"]
    for policy, setting, compiled in (
        (known, "never", False),
        (known, "auto", True),
        (known, "always", True),
        (own, "auto", False),
        (own, "always", True),
    ):
        step: Any = make_policy_step(policy, spec, OBS_SPEC, N, "cpu", True, compile_acting=setting)  # type: ignore[arg-type]
        assert (step == "compiled") == compiled


def test_a_worker_collects_the_same() -> None:
    """Chunk by chunk with new weights, whatever else draws."""
    spec = small_agent_spec(Reach, partial(tformer, n_layers=1), 6, width=8)
    weights = [Weights(version, flatten_state(spec.build().policy)) for version in range(3)]
    for given in weights:
        given.buffer.view(np.float32)[:] *= 1 + given.version / 2
    collected: list[list[Trajectory]] = []
    for setting in ("never", "auto"):
        written: list[Trajectory] = []
        config = RolloutConfig(Reach, N, 0, 0, 16, None, compile_acting=setting)  # type: ignore[arg-type]
        worker = RolloutWorker(config, spec, write=written.append)
        assert isinstance(worker._policy_step, CompiledPolicyStep) == (setting == "auto")
        for given in weights:
            torch.randn(given.version + 1)
            worker.set_weights(given)
            worker.collect(10 * N)
        worker.close()
        collected.append(written)
    assert len(collected[0]) > N
    assert_same_trajectories(*collected)
