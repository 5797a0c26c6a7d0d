"""On a GPU that is pretended: nothing mixes devices, reads a value, or copies from memory that is not pinned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from agent_cases import ACTION_SPECS, LENGTHS, OBS_SPEC, L, actor, tformer
from gpu.cases import AGENTS, ENCODERS, PlainRecorder, agent_spec, make_learner, prepared_batch, to
from pretend_cuda import CUDA, PretendCuda
from torch import Tensor

from amago_ray.agent.micro_batches import cut
from amago_ray.agent.policy import TrainingBatch
from amago_ray.agent.spec import AgentSpec
from amago_ray.learner.learner import Learner
from amago_ray.nets import mamba
from amago_ray.nets.attention import SlidingSinkAttention
from amago_ray.nets.cnn import GridworldCNN
from amago_ray.nets.mamba import Kernels
from amago_ray.nets.packed_sequences import Packing, on_device
from amago_ray.nets.policy_outputs import GMM
from amago_ray.nets.tstep_encoders import CNNTstepEncoder
from amago_ray.specs import ArraySpec

pytestmark = [
    pytest.mark.filterwarnings("ignore:PyTorch was compiled without cuDNN"),
    pytest.mark.filterwarnings("ignore:Mamba runs without mamba-ssm's kernels"),
    pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'"),
]
SINK_ATTENTION = partial(SlidingSinkAttention, window_size=3, sink_size=1, logit_clip=10.0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    monkeypatch.setattr(Accelerator, "device", property(lambda self: CUDA))
    monkeypatch.setattr("amago_ray.learner.learner.CudaRecorder", PlainRecorder)
    with PretendCuda() as pretended:
        yield pretended


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.arange(5),
        lambda x: x[torch.arange(5)],
        lambda x: x.index_copy(0, torch.arange(5), x),
        lambda x: torch.where(torch.ones(5, dtype=torch.bool), x, x),
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: torch.ones(5).copy_(x),
        lambda x: x.copy_(torch.ones(5)),
        lambda x: torch.ones(5).to("cuda"),
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
        lambda x: torch.as_tensor(np.ones(3)).to(x.device, non_blocking=True),
    ],
)
def test_what_is_wrong_is_found(wrong: Callable[[Tensor], Any], gpu: PretendCuda) -> None:
    x = torch.randn(5, device="cuda")
    try:
        wrong(x)
    except (RuntimeError, NotImplementedError, TypeError):
        return
    assert gpu.faults


def test_what_is_right_is_let_pass(gpu: PretendCuda) -> None:
    x = on_device(np.ones((5, 2)), "cuda")
    assert x.is_cuda and x.device == CUDA and gpu.copies_to_device == 1
    y = (x * 2.0 + torch.tensor(1.0))[torch.arange(5, device=x.device)] @ torch.zeros(2, 3, device="cuda").double()
    assert y.is_cuda and torch.empty(3, pin_memory=True).to(CUDA).is_cuda and gpu.faults == []


def check(gpu: PretendCuda, spec: AgentSpec, batch: TrainingBatch, **config: Any) -> Learner:
    """Two whole updates, one of them with metrics."""
    learner = make_learner(spec, "cuda", **config)
    batch = to(batch, "cuda")
    gpu.faults.clear()
    for log in (False, True):
        before = gpu.copies_to_device
        learner.update(batch, log=log)
        assert gpu.faults == [], f"log={log}"
        # Which critics a target reduces over is drawn on the host.
        assert gpu.copies_to_device - before <= max(len(batch.pieces), 1)
    assert all(x.is_cuda for x in [*learner.agent.parameters(), *learner.agent.buffers()])
    assert learner.updates_done == 2
    return learner


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("encoder", "kind"),
    [
        *product(ENCODERS, ("discrete", "continuous")),
        ("feed-forward", "multibinary"),
        ("feed-forward", "multidiscrete"),
    ],
)
def test_an_update_stays_on_the_device(agent: str, encoder: str, kind: str, gpu: PretendCuda) -> None:
    """Forward, backward, clipping, optimiser step and target networks."""
    check(gpu, agent_spec(agent, kind, ENCODERS[encoder]), prepared_batch(kind))


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("discrete", {"n_step": 3, "online_coeff": 1.0}),
        ("continuous", {"online_coeff": 0.0, "use_target_actor": False, "popart": False}),
        ("continuous", {"actor_type": partial(actor, policy_output_type=GMM), "online_coeff": 0.0}),
        ("discrete", {"encoder": partial(tformer, pos_emb="learnable", dropout_ff=0.1)}),
        ("discrete", {"encoder": partial(tformer, pos_emb="rope", attention_type=SINK_ATTENTION)}),
    ],
)
def test_with_every_setting(agent: str, kind: str, settings: dict[str, Any], gpu: PretendCuda) -> None:
    check(gpu, agent_spec(agent, kind, **settings), prepared_batch(kind))


def test_with_masks_weights_and_images(gpu: PretendCuda) -> None:
    batch, B = prepared_batch("discrete"), len(LENGTHS)
    masked = {"legal": torch.ones(B, L + 1, 4, dtype=torch.int8)}
    spec = agent_spec(obs_spec={**OBS_SPEC, "legal": ArraySpec((4,), "int8")}, action_mask_key="legal")
    check(gpu, spec, dataclasses.replace(batch, obs=batch.obs | masked, weight=torch.ones(B)))
    images = torch.zeros(B, L + 1, 9, 9, 3, dtype=torch.uint8)
    encoder = partial(CNNTstepEncoder, cnn_type=GridworldCNN, drqv2_aug=True)
    spec = agent_spec(tstep_encoder=encoder, obs_spec={"image": ArraySpec((9, 9, 3), "uint8")})
    check(gpu, spec, dataclasses.replace(batch, obs={"image": images}))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_packed_in_pieces_and_computed_again(encoder: str, gpu: PretendCuda) -> None:
    batch, lengths = prepared_batch("continuous"), np.array(LENGTHS)
    on_host = Packing.of(lengths + 1)
    laid_out = {name: on_host.pack(getattr(batch, name)) for name in ("rl2", "time_idx")}
    obs = {name: on_host.pack(x) for name, x in batch.obs.items()}
    batch = to(dataclasses.replace(batch, obs=obs, **laid_out), "cuda")
    batch = dataclasses.replace(batch, packing=Packing.of(lengths + 1, "cuda"))
    spec = agent_spec(kind="continuous", encoder=ENCODERS[encoder])
    again = not torch.cuda.is_available()  # a real GPU's random state would be asked for
    check(gpu, spec, cut(batch, lengths, 3), activation_checkpointing=again)
    check(gpu, spec, batch, batches_per_update=1)


def test_mamba_s_kernels_get_what_is_on_the_device(gpu: PretendCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins of their signatures, which look at what they are handed."""

    def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, **more: Any) -> Tensor:
        tensors = [u, delta, A, B, C, D, *(x for x in more.values() if isinstance(x, Tensor))]
        assert all(x.is_cuda for x in tensors) and A.dtype == D.dtype == torch.float32
        assert all(x.dtype == u.dtype and x.is_contiguous() for x in (delta, B, C, more["z"]))
        return u + delta * more["z"] + (B.sum(dim=1) + C.sum(dim=1)).unsqueeze(1) + (A.sum(dim=1) * D).unsqueeze(1)

    monkeypatch.setattr(mamba, "cuda_kernels", lambda: Kernels(selective_scan, None))
    check(gpu, agent_spec(encoder=ENCODERS["mamba"]), prepared_batch("discrete"))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_acting_stays_on_the_device(encoder: str, kind: str, gpu: PretendCuda) -> None:
    """What one step after the other makes of observations that are there; memories are reset by masks of the host."""
    policy = agent_spec(kind=kind, encoder=ENCODERS[encoder]).build().policy.to("cuda").eval()
    memory, num = policy.initial_memory(3), 3
    for step in range(L + 3):
        obs = {"x": torch.zeros(num, 3, device="cuda"), "n": torch.zeros(num, dtype=torch.int64, device="cuda")}
        rl2 = torch.zeros(num, 1 + ACTION_SPECS[kind].vector_size, device="cuda")
        action, memory = policy.act(obs, rl2, torch.full((num,), step, device="cuda"), memory, sample=True)
        assert action.is_cuda
        memory = policy.reset_memory(memory, np.array([step == 3, False, True]))
    assert [fault for fault in gpu.faults if "both devices" in fault] == []


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_as_one_graph_stays_on_the_device(encoder: str, gpu: PretendCuda) -> None:
    """It is handed tensors alone, and copies nothing: it could be captured as a CUDA graph."""
    traj_encoder = agent_spec(encoder=ENCODERS[encoder]).build().policy.traj_encoder.to("cuda").eval()
    memory = traj_encoder.portable_memory(3)
    assert all(value.is_cuda or name == "count" for name, value in memory.items())
    memory = {name: value.to("cuda") for name, value in memory.items()}
    gpu.faults.clear()
    before = gpu.copies_to_device
    with torch.no_grad():
        for step in range(L + 2):
            time_idx = torch.full((3,), step, device="cuda")
            state, memory = traj_encoder.portable_step(torch.zeros(3, 12, device="cuda"), time_idx, memory)
    assert state.is_cuda and all(x.is_cuda for x in memory.values())
    assert gpu.faults == [] and gpu.copies_to_device == before


def test_values_of_stored_data(gpu: PretendCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    agent = agent_spec().build().to("cuda")
    values = agent.get_values(to(prepared_batch("discrete"), "cuda"))
    assert all(value.is_cuda for value in values.values())
    assert [fault for fault in gpu.faults if "both devices" in fault] == []
