"""Where kernels are used, and what happens where they cannot be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from small_agents import small_agent_spec

from amago_ray.agent import AgentSpec
from amago_ray.envs.builtin import Counting
from amago_ray.learner.learner import Learner, LearnerConfig
from amago_ray.nets import compiled_files, kernels, narrow_attention
from amago_ray.nets.traj_encoders import GRUTrajEncoder, TformerTrajEncoder
from amago_ray.nets.transformer import Transformer

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("forgotten_kernels")]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Learners set what accelerate keeps for the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def spec_of(n_heads: int) -> AgentSpec:
    """Of a Transformer 32 wide."""
    encoder = partial(TformerTrajEncoder, d_model=32, n_heads=n_heads, d_ff=32, n_layers=1)
    return small_agent_spec(Counting, encoder, max_seq_len=8)


def test_a_learner_has_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Heads of 16 and GRUs of 32; for others nothing is compiled, nor where learners are told not to."""
    for heads, has in ((2, True), (4, False)):
        spec = spec_of(heads)
        learner = Learner(LearnerConfig(kernels=True), spec, None)  # type: ignore[arg-type]
        (transformer,) = [m for m in learner.agent.modules() if isinstance(m, Transformer)]
        assert transformer.attention._narrow == has
        (plain,) = [m for m in spec.build().modules() if isinstance(m, Transformer)]
        assert not plain.attention._narrow
    spec = small_agent_spec(Counting, partial(GRUTrajEncoder, d_hidden=32), max_seq_len=8)
    learner = Learner(LearnerConfig(kernels=True), spec, None)  # type: ignore[arg-type]
    assert isinstance(learner.agent.policy.traj_encoder, GRUTrajEncoder)
    assert learner.agent.policy.traj_encoder._kernel
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    kernels.compiled.cache_clear()
    odd = small_agent_spec(Counting, partial(GRUTrajEncoder, d_hidden=24), max_seq_len=8)
    # These would warn that they cannot compile kernels.
    Learner(LearnerConfig(compile=True), spec_of(2), None)  # type: ignore[arg-type]
    for without in (spec_of(4), odd):
        Learner(LearnerConfig(kernels=True, compile=True), without, None)  # type: ignore[arg-type]


def test_batches_are_packed_where_attention_takes_them_so() -> None:
    """If that is left to the learner: not for other heads or encoders, for code of others, for pieces, nor untold."""

    class Own(TformerTrajEncoder):
        pass

    own = partial(Own, d_model=32, n_heads=2, d_ff=32, n_layers=1)
    gru = partial(GRUTrajEncoder, d_hidden=32)
    rope = partial(TformerTrajEncoder, d_model=32, n_heads=2, d_ff=32, n_layers=1, pos_emb="rope")
    others = [small_agent_spec(Counting, encoder, max_seq_len=8) for encoder in (own, gru, rope)]
    auto = LearnerConfig(kernels=True, packed="auto")
    for config, spec, packs in (
        (auto, spec_of(2), True),
        *((auto, spec, False) for spec in (spec_of(4), *others)),
        (replace(auto, micro_batch_size=2), spec_of(2), False),
        (replace(auto, kernels=False), spec_of(2), False),
        (replace(auto, packed=False), spec_of(2), False),
    ):
        assert Learner(config, spec, None).packs is packs  # type: ignore[arg-type]
    padded_for_attention = replace(auto, packed=True, compile="packed")
    for config, spec, compiled in (
        (replace(auto, compile="packed"), spec_of(2), True),
        (replace(auto, compile="packed"), spec_of(4), False),
        (padded_for_attention, spec_of(4), False),
        (replace(auto, compile=True), spec_of(4), True),
    ):
        learner = Learner(config, spec, None)  # type: ignore[arg-type]
        (transformer,) = [m for m in learner.agent.modules() if isinstance(m, Transformer)]
        assert transformer.is_compiled is compiled


def test_what_is_compiled_once_is_taken_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    kernels.compiled(narrow_attention.SOURCE)
    (made,) = (tmp_path / compiled_files.FOLDER).glob("*.so")
    monkeypatch.setattr(kernels, "_compile", None)
    kernels.compiled.cache_clear()
    assert kernels.compiled(narrow_attention.SOURCE)._name == str(made)


@pytest.mark.parametrize(
    ("compiler", "said"),
    [("no-such-compiler", "there is no C\\+\\+ compiler"), ("false", ".*false: exit status 1$")],
)
def test_without_a_compiler(compiler: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Networks compute as they did, which is told where compiling was asked for."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    spec = spec_of(2)
    with pytest.raises(OSError, match=said):
        kernels.compiled(narrow_attention.SOURCE)
    assert not list((tmp_path / compiled_files.FOLDER).glob("*.so"))
    learner = Learner(LearnerConfig(kernels=True), spec, None)  # type: ignore[arg-type]
    (transformer,) = [m for m in learner.agent.modules() if isinstance(m, Transformer)]
    assert transformer(torch.randn(2, 5, transformer.inp.in_features), torch.arange(5).expand(2, -1)).isfinite().all()
    gru = small_agent_spec(Counting, partial(GRUTrajEncoder, d_hidden=32), max_seq_len=8)
    encoder = Learner(LearnerConfig(kernels=True), gru, None).agent.policy.traj_encoder  # type: ignore[arg-type]
    x = torch.randn(2, 5, encoder.rnn.input_size)
    assert encoder(x, torch.arange(5).expand(2, -1)).isfinite().all()
    with pytest.warns(UserWarning, match="kernels for processors are not compiled: " + said):
        Learner(LearnerConfig(kernels=True, compile=True), spec, None)  # type: ignore[arg-type]
