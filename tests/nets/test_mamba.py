"""The plain Mamba equals `mamba_ssm`'s own reference, acts step by step as it trains, and stays within its memory."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from amago_ray.nets import mamba
from amago_ray.nets.mamba import MAX_CHUNK, Kernels, Mamba, SelectiveScan, selective_scan
from amago_ray.nets.traj_encoders import MambaTrajEncoder

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
torch.set_num_threads(1)


def load_without_kernels(*names: str, stand_ins: Mapping[str, types.ModuleType | None]) -> list[types.ModuleType]:
    """Import modules of `mamba_ssm` without running the package's own __init__, which needs a GPU.

    stand_ins: modules that they find in place of what they ask for; None is one that is not installed. Neither these
    nor what was imported stays in `sys.modules`.
    """
    spec = importlib.util.find_spec("mamba_ssm")
    assert spec is not None, "mamba-ssm is not installed: `make test` installs it, without its kernels"
    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(spec.submodule_search_locations)

    def take_out() -> dict[str, types.ModuleType]:
        ours = [name for name in sys.modules if name in stand_ins or name.split(".")[0] == "mamba_ssm"]
        return {name: sys.modules.pop(name) for name in ours}

    before = take_out()
    sys.modules.update({"mamba_ssm": package, **stand_ins})
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        take_out()
        sys.modules.update(before)


@pytest.fixture(scope="module")
def reference() -> types.ModuleType:
    """`mamba_ssm.modules.mamba_simple` on `selective_scan_ref`: no CUDA, no Triton, no causal_conv1d."""
    layer_norm = types.ModuleType("mamba_ssm.ops.triton.layer_norm")
    layer_norm._layer_norm_fwd = None
    interface, module = load_without_kernels(
        "mamba_ssm.ops.selective_scan_interface",
        "mamba_ssm.modules.mamba_simple",
        stand_ins={
            "selective_scan_cuda": types.ModuleType("selective_scan_cuda"),
            "causal_conv1d": None,
            "mamba_ssm.ops.triton.layer_norm": layer_norm,
            "mamba_ssm.ops.triton.selective_state_update": None,
        },
    )
    module.selective_scan_fn = interface.selective_scan_ref
    assert module.causal_conv1d_fn is None and module.selective_state_update is None
    return module


@pytest.fixture(scope="module")
def reference_state_update() -> Callable[..., Tensor]:
    """`selective_state_update_ref`, whose module wants to see Triton."""
    triton = mock.MagicMock(__version__="3.5.0")
    (module,) = load_without_kernels(
        "mamba_ssm.ops.triton.selective_state_update",
        stand_ins={"triton": triton, "triton.language": triton.language},
    )
    return module.selective_state_update_ref


def scan_inputs(
    batch: int, length: int, channels: int, states: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """u, dt, A, B, C, with dt from 1e-4 (remember) to 30 (forget everything, decays that underflow)."""
    random = torch.Generator().manual_seed(length)
    normal = functools.partial(torch.randn, generator=random, dtype=dtype)
    dt = 10 ** (torch.rand(batch, length, channels, generator=random, dtype=dtype) * 5.5 - 4)
    inputs = [
        normal(batch, length, channels),
        dt,
        -torch.exp(normal(channels, states)),
        normal(batch, length, states),
        normal(batch, length, states),
    ]
    return [x.requires_grad_() for x in inputs]


def assert_same_gradients(actual: Tensor, expected: Tensor, of: list[Tensor], to: list[Tensor] | None = None) -> None:
    """Values to 1e-5, gradients to 1e-5 of the largest of their tensor (float32 sums in another order)."""
    torch.testing.assert_close(actual, expected, **CLOSE)
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * probe).sum(), of if to is None else to)
    for ours, theirs in zip(torch.autograd.grad((actual * probe).sum(), of), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("buffer", [1, 3 * MAX_CHUNK * 5 * 4, mamba.CPU_BUFFER], ids=["lane", "few", "all"])
@pytest.mark.parametrize(
    "length", [1, 2, MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 2 * MAX_CHUNK, 67, 7 * MAX_CHUNK + 3]
)
def test_scan_equals_reference(
    reference: types.ModuleType, monkeypatch: pytest.MonkeyPatch, length: int, buffer: int
) -> None:
    """Around every chunk boundary, with tiles of one chunk, of some chunks, and of everything."""
    monkeypatch.setattr(mamba, "CPU_BUFFER", buffer)
    inputs = scan_inputs(batch=3, length=length, channels=5, states=4)
    u, dt, A, B, C = inputs
    ours = selective_scan(u, dt, A, B, C)
    u, dt, B, C = (x.transpose(1, 2) for x in (u, dt, B, C))
    assert_same_gradients(ours, reference.selective_scan_fn(u, dt, A, B, C).transpose(1, 2), inputs)


def test_scan_gradient_by_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba, "MAX_CHUNK", 3)
    u, dt, A, B, C = scan_inputs(batch=2, length=8, channels=2, states=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(SelectiveScan.apply, (u, dt, A.detach().t().clone().requires_grad_(), B, C))


@pytest.mark.parametrize("options", [{}, {"d_state": 4, "d_conv": 2, "expand": 1}, {"d_conv": 3, "expand": 3}])
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 2, 20), (2, 3 * MAX_CHUNK + 5, 48)])
def test_module_equals_reference(
    reference: types.ModuleType, shape: tuple[int, int, int], options: dict[str, int]
) -> None:
    """The same start from the same seed; the same function; the same names, so that weights load both ways."""
    torch.manual_seed(0)
    theirs = reference.Mamba(shape[2], use_fast_path=False, **options)
    torch.manual_seed(0)
    ours = Mamba(shape[2], **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    torch.manual_seed(1)
    for trained in (ours, theirs):
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        other = theirs if trained is ours else ours
        other.load_state_dict(trained.state_dict())
        x = torch.randn(shape, requires_grad=True)
        assert_same_gradients(ours(x), theirs(x), [x, *ours.parameters()], [x, *theirs.parameters()])


def test_dt_starts_in_its_range() -> None:
    dt = F.softplus(Mamba(256).dt_proj.bias)
    assert 1e-3 * 0.999 <= dt.min() < 1.5e-3 and 0.07 < dt.max() <= 0.1 * 1.001


def small_encoder(max_seq_len: int = 12) -> MambaTrajEncoder:
    torch.manual_seed(0)
    return MambaTrajEncoder(tstep_dim=5, max_seq_len=max_seq_len, d_model=8, d_state=4, n_layers=2)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(
    num_envs=st.integers(1, 4),
    max_seq_len=st.integers(1, 25),
    end_probability=st.sampled_from([0.0, 0.02, 0.3]),
    seed=st.integers(0, 1000),
)
def test_steps_equal_whole_sequences(num_envs: int, max_seq_len: int, end_probability: float, seed: int) -> None:
    """Rollouts three times as long as max_seq_len, reset at different times: values and gradients to 1e-5."""
    random, encoder, length = np.random.default_rng(seed), small_encoder(max_seq_len), 3 * max_seq_len
    x_BLD = torch.from_numpy(random.normal(size=(num_envs, length, 5)).astype(np.float32)).requires_grad_()
    ends_BL = random.random((num_envs, length)) < end_probability
    memory, steps, time_idx = encoder.initial_memory(num_envs), [], torch.zeros(num_envs, dtype=torch.int64)
    for t in range(length):
        state, memory = encoder.step(x_BLD[:, t], time_idx, memory)
        steps.append(state)
        memory = encoder.reset_memory(memory, ends_BL[:, t])
    whole = []
    for b in range(num_envs):
        parts = np.split(np.arange(length), np.flatnonzero(ends_BL[b]) + 1)
        whole.append(torch.cat([encoder(x_BLD[b : b + 1, part], None)[0] for part in parts if len(part)]))
    assert_same_gradients(torch.stack(steps, dim=1), torch.stack(whole), [x_BLD, *encoder.parameters()])


def test_step_equals_reference_step(reference: types.ModuleType) -> None:
    theirs, ours = reference.Mamba(20, use_fast_path=False), Mamba(20)
    ours.load_state_dict(theirs.state_dict())
    conv, ssm = theirs.allocate_inference_cache(3, max_seqlen=1)
    window, state = conv.transpose(1, 2).clone(), ssm.transpose(1, 2).clone()
    with torch.no_grad():
        for x_BM in torch.randn(7, 3, 20):
            expected, conv, ssm = theirs.step(x_BM.unsqueeze(1), conv, ssm)
            actual, window, state = ours.step(x_BM, window, state)
            torch.testing.assert_close(
                (actual, window, state), (expected.squeeze(1), conv.transpose(1, 2), ssm.transpose(1, 2)), **CLOSE
            )


def test_reset_leaves_other_environments_alone() -> None:
    """A reset environment is as new even if what it remembered was not finite."""
    encoder = small_encoder()
    x_BD, time_idx = torch.randn(3, 5), torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        first, memory = encoder.step(x_BD, time_idx, encoder.initial_memory(3))
        second, _ = encoder.step(x_BD, time_idx, memory)
        memory.state_BND[1][1] = torch.nan
        after, _ = encoder.step(x_BD, time_idx, encoder.reset_memory(memory, np.array([False, True, False])))
    torch.testing.assert_close(after, torch.stack([second[0], first[1], second[2]]))


class Operations(TorchDispatchMode):
    """The names of the operations that run, and the bytes of the tensors made by them: alive now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0

    @property
    def bytes(self) -> int:
        self._storages = {key: value for key, value in self._storages.items() if not value[0].expired()}
        return sum(nbytes for _, nbytes in self._storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            storage = result.untyped_storage()
            self._storages[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self.bytes)
        return result


@pytest.mark.parametrize("batch, length, channels", [(32, 256, 16), (6, 1000, 32)])
def test_memory_stays_within_its_bound(monkeypatch: pytest.MonkeyPatch, batch: int, length: int, channels: int) -> None:
    """Kept from forward to backward, besides inputs and output: the states at the starts of chunks.

    While backward runs, all its gradients included: far less than one (B, L, D, N) tensor.
    """
    states = 16
    monkeypatch.setattr(mamba, "CPU_BUFFER", buffer := 2 * MAX_CHUNK * states * channels)
    inputs = scan_inputs(batch, length, channels, states)
    sequence, input_bytes = batch * length * channels * 4, 4 * sum(x.numel() for x in inputs)
    starts = 4 * batch * -(-length // MAX_CHUNK) * channels * states
    padding = 1 + MAX_CHUNK / length
    with Operations() as operations:
        y = selective_scan(*inputs)
        # A is transposed. y may be a view of a padded y.
        assert operations.bytes <= starts + padding * sequence + inputs[2].numel() * 4
        y.backward(torch.ones_like(y))
    # Inputs padded and their gradients; y, its gradient and that one padded; two states per chunk; three buffers, and
    # what is computed from them for one tile.
    bound = 2 * padding * input_bytes + 3 * padding * sequence + 2 * starts + 4 * (3 + 1) * buffer
    assert operations.peak_bytes <= bound < sequence * states


def test_whole_layer_keeps_a_few_sequences() -> None:
    """A layer in training keeps less than 14 tensors of (B, L, D); a loop under autograd would keep over N."""
    layer = Mamba(64)
    with Operations() as operations:
        y = layer(torch.randn(4, 256, 64))
    assert operations.bytes < 14 * 4 * 256 * layer.d_inner * 4
    assert y.requires_grad


def test_scan_is_parallel_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many timesteps take only as many more operations as there are more chunks."""
    monkeypatch.setattr(mamba, "CPU_BUFFER", mamba.DEVICE_BUFFER)
    counts = []
    for length in (256, 1024):
        with Operations() as operations:
            selective_scan(*scan_inputs(2, length, 4, 4))
        counts.append(sum(name == "addcmul" or name == "addcmul_" for name in operations.names))
    assert counts[0] < 256 / 2 and counts[1] - counts[0] <= (1024 - 256) / MAX_CHUNK


def test_autocast_changes_nothing_in_the_scan() -> None:
    """Neither forward nor in a backward that is called under it."""
    inputs = scan_inputs(2, 70, 5, 4)
    expected = selective_scan(*inputs)
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = selective_scan(*inputs)
        gradients = torch.autograd.grad(actual.square().sum(), inputs)
    torch.testing.assert_close((actual, gradients), (expected, wanted), rtol=0, atol=0)


def test_autocast_keeps_the_scan_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, x_BLD, dtypes = small_encoder(), torch.randn(2, 70, 5), []
    expected = encoder(x_BLD, None)
    apply = SelectiveScan.apply

    def spy(*inputs: Tensor) -> Tensor:
        result = apply(*inputs)
        dtypes.extend(x.dtype for x in (*inputs, result))
        return result

    monkeypatch.setattr(SelectiveScan, "apply", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = encoder(x_BLD, None)
        actual.float().square().sum().backward()  # under autocast too, as some would call it
        step, memory = encoder.step(x_BLD[:, 0], None, encoder.initial_memory(2))
    assert set(dtypes) == {torch.float32}
    assert {x.dtype for x in (*memory.state_BND, *memory.window_BWD)} == {torch.float32}
    torch.testing.assert_close(actual.float(), expected, rtol=0.1, atol=0.1)
    torch.testing.assert_close(step.float(), expected[:, 0], rtol=0.1, atol=0.1)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in encoder.parameters())


def test_kernel_path_equals_plain_path(
    reference: types.ModuleType, reference_state_update: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that a GPU would make, answered by the package's reference functions of the same signatures."""
    encoder, x_BLD = small_encoder(), torch.randn(2, 40, 5, requires_grad=True)
    plain = encoder(x_BLD, None)
    scan, update = (mock.Mock(side_effect=f) for f in (reference.selective_scan_fn, reference_state_update))
    monkeypatch.setattr(mamba, "kernels_for", lambda x: Kernels(scan, update))
    assert_same_gradients(encoder(x_BLD, None), plain, [x_BLD, *encoder.parameters()])
    with torch.no_grad():
        memory, steps = encoder.initial_memory(2), []
        for x_BD in x_BLD.unbind(1):
            state, memory = encoder.step(x_BD, None, memory)
            steps.append(state)
    torch.testing.assert_close(torch.stack(steps, dim=1), plain, **CLOSE)
    assert (scan.call_count, update.call_count) == (2, 80)


@pytest.fixture
def fresh_import_of_kernels() -> Iterator[None]:
    mamba.cuda_kernels.cache_clear()
    yield
    mamba.cuda_kernels.cache_clear()


def test_missing_kernels_are_said_once(fresh_import_of_kernels: None) -> None:
    with mock.patch.dict(sys.modules, {"mamba_ssm": None}), pytest.warns(UserWarning, match="without mamba-ssm's"):
        assert mamba.cuda_kernels() is None
    assert mamba.cuda_kernels() is None  # no second import, no second warning
    assert mamba.kernels_for(torch.zeros(1)) is None
