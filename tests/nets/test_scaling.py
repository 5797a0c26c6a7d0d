"""PopArt, input statistics and two-hot labels equal the reference's numbers, on one rank or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from amago_ray.nets.scaling import InputNorm, PopArt, TwoHot, symexp, symlog

GOLDEN = Path(__file__).parents[1] / "golden"
PARTS = np.load(GOLDEN / "parts.npz")


def part(name: str) -> torch.Tensor:
    return torch.from_numpy(PARTS[name])


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


def test_symlog_and_symexp_are_inverse() -> None:
    x = torch.tensor([-1e5, -3.0, -1e-4, 0.0, 0.5, 2e4])
    close(symlog(x), x.sign() * (x.abs() + 1).log())
    close(symexp(symlog(x)), x)


def test_popart_equals_the_reference() -> None:
    popart = PopArt(2)
    for i in range(3):
        popart.update(part(f"popart/{i}/value"), part(f"popart/{i}/mask"))
        for name in ("mu", "nu", "b", "sigma"):
            close(getattr(popart, name), part(f"popart/{i}/{name}"))
        close(popart.w, 10.0 / popart.sigma)
    close(popart.w, part("popart/2/w"))  # the file holds this last w under 0 and 1 as well
    x = part("popart/x")
    close(popart(x), part("popart/normalized"))
    close(popart.denormalize(x), part("popart/denormalized"))


def test_popart_updates_change_no_value_and_ignore_what_is_masked() -> None:
    torch.manual_seed(0)
    popart, x = PopArt(3), torch.randn(4, 5, 3, 1)
    value, mask = 50 * torch.randn(4, 5, 3, 1) + 7, torch.rand(4, 5, 1, 1) > 0.4
    before = popart.denormalize(x)
    popart.update(torch.where(mask, value, torch.nan), mask)
    torch.testing.assert_close(popart.denormalize(x), before, rtol=1e-5, atol=1e-4)
    close(popart.mu, 0.5 * value[mask[..., 0, 0]].mean(dim=0), atol=1e-2)  # the first step is almost one half
    target = popart.normalize_target(value)
    close(popart.sigma * target + popart.mu, value, atol=1e-4)


def test_popart_disabled_is_the_identity() -> None:
    popart, x = PopArt(3, enabled=False), torch.randn(4, 3, 1)
    popart.update(x)
    for out in (popart(x), popart.denormalize(x), popart.normalize_target(x)):
        assert torch.equal(out, x)
    assert popart.t.eq(1).all()


@pytest.mark.parametrize("name", ["agent_discrete_gru", "agent_continuous_ff", "multitask_discrete_hlgauss_exp"])
def test_input_norm_equals_the_reference(name: str) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}
    x = torch.cat((arrays["batch/obs/a"], arrays["batch/obs/b"], arrays["batch/rl2s"]), dim=-1)
    mask = torch.arange(x.shape[1]) < arrays["batch/lengths"].unsqueeze(1) + 1
    norm = InputNorm(x.shape[-1])
    norm.load_state_dict(
        {k: arrays[f"state/tstep_encoder.in_norm.{v}"] for k, v in (("mu",) * 2, ("nu",) * 2, ("t", "_t"))}
    )
    norm.update(x, mask)
    for ours, theirs in (("mu", "mu"), ("nu", "nu"), ("t", "_t")):
        close(getattr(norm, ours), arrays[f"after/tstep_encoder.in_norm.{theirs}"])

    weights = {
        k.removeprefix("state/tstep_encoder."): v for k, v in arrays.items() if k.startswith("state/tstep_encoder.")
    }
    y = norm(x)
    for layer in ("in_layer", "layers.0", "out_layer"):
        y = torch.nn.functional.linear(y, weights[f"base.{layer}.weight"], weights[f"base.{layer}.bias"])
        y = y if layer == "out_layer" else torch.nn.functional.leaky_relu(y)
    y = torch.nn.functional.layer_norm(y, (10,), weights["out_norm.norm.weight"], weights["out_norm.norm.bias"])
    close(y[mask], arrays["eval/tstep_emb"][mask])


def test_input_norm_only_centres_constant_features() -> None:
    torch.manual_seed(0)
    x = torch.stack((torch.full((8, 50), 300.0), 5 + 2 * torch.randn(8, 50)), dim=-1)
    norm = InputNorm(2, beta=0.5)
    for _ in range(60):
        norm.update(x, None)
    y = norm(x)
    assert y[..., 0].abs().max() < 1e-2
    assert abs(y[..., 1].std() - 1) < 0.01 and abs(y[..., 1].mean()) < 0.01


def test_a_mean_much_larger_than_the_spread_costs_no_digits() -> None:
    """Time stamps, prices, positions in metres: N(1e6, 30), where mean squares in float32 are exact to 65,536."""
    torch.manual_seed(0)
    norm, popart = InputNorm(1, beta=0.1), PopArt(1, beta=0.1)
    for _ in range(300):
        x = 1e6 + 30 * torch.randn(4096, 1)
        norm.update(x)
        popart.update(x.unsqueeze(-1))
    for y in (norm(x), popart.normalize_target(x)):
        assert y.std().item() == pytest.approx(1.0, abs=0.05)
        assert abs(y.mean()) < 0.1


def test_variance_is_that_of_the_moments() -> None:
    torch.manual_seed(0)
    norm, rng = InputNorm(3, beta=0.01), np.random.default_rng(0)
    mu, nu, t = np.zeros(3), np.ones(3), 1
    for _ in range(50):
        x = rng.normal(loc=[0.0, 3.0, -1.0], scale=[1.0, 0.2, 5.0], size=(20, 3))
        t += 1
        step = 0.01 / (1 - 0.99**t)
        mu, nu = mu + step * (x.mean(axis=0) - mu), nu + step * ((x**2).mean(axis=0) - nu)
        norm.update(torch.from_numpy(x).float())
    for ours, expected in ((norm.mu, mu), (norm.nu, nu), (norm.variance, nu - mu**2)):
        close(ours, torch.from_numpy(expected).float(), atol=1e-5)


def test_statistics_without_a_variance_get_it_from_their_moments() -> None:
    norm = InputNorm(2)
    norm.load_state_dict({"mu": torch.tensor([3.0, 0.0]), "nu": torch.tensor([13.0, 4.0]), "t": torch.tensor([9.0])})
    assert norm.variance.tolist() == [4.0, 4.0]
    with pytest.raises(RuntimeError, match="Missing key.*nu"):
        norm.load_state_dict({"mu": torch.zeros(2), "t": torch.ones(1)})
    assert InputNorm(2, init_nu=9.0)(torch.tensor([3.0, 6.0])).tolist() == pytest.approx([1.0, 2.0], rel=1e-4)


@pytest.mark.parametrize("label_type", ["twohot", "hlgauss"])
def test_labels_equal_the_reference(label_type: str) -> None:
    two_hot = TwoHot(32, -100.0, 1000.0, label_type=label_type)
    close(two_hot.bins, part("labels/bin_vals"))
    close(two_hot.encode(part(f"labels/{label_type}/value")), part(f"labels/{label_type}/label"))
    close(two_hot.decode(part("labels/logits")), part("labels/scalar"))


@pytest.mark.parametrize("label_type", ["twohot", "hlgauss"])
@pytest.mark.parametrize("use_symlog", [True, False])
def test_labels_are_distributions_and_decode_to_their_value(label_type: str, use_symlog: bool) -> None:
    two_hot = TwoHot(64, -100.0, 100.0, use_symlog=use_symlog, label_type=label_type)
    value = torch.tensor([[-60.0], [-3.0], [0.0], [0.7], [42.0]])
    label = two_hot.encode(value)
    close(label.sum(dim=-1), torch.ones(5), atol=1e-5)
    torch.testing.assert_close(two_hot.decode(label.log()), value, rtol=0.05, atol=0.05)
    beyond = two_hot.encode(torch.tensor([[-1e9], [1e9]]))
    close(beyond, torch.eye(64)[[0, -1]], atol=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.75, 2.0, 4.0])
def test_the_width_of_gaussian_labels(sigma: float) -> None:
    """Their standard deviation is sigma bin widths, and that of a uniform bin; ends are reached from anywhere."""
    two_hot = TwoHot(101, -50.0, 50.0, use_symlog=False, label_type="hlgauss", sigma=sigma)
    label = two_hot.encode(torch.tensor([7.0]))
    variance = (label * (two_hot.bins - 7.0).square()).sum()
    if sigma > 0.5:
        assert float(variance) == pytest.approx(sigma**2 + 1 / 12, rel=1e-3)
    if sigma < 0.1:
        close(label, torch.eye(101)[57], atol=1e-5)
    beyond = two_hot.encode(torch.tensor([[-1e9], [1e9]]))
    close(beyond.sum(dim=-1), torch.ones(2), atol=1e-5)
    assert beyond.argmax(dim=-1).tolist() == [0, 100]


def test_two_hot_settings_are_checked() -> None:
    with pytest.warns(UserWarning, match="return range left unset"):
        TwoHot()
    with pytest.raises(ValueError, match="num_bins=1"):
        TwoHot(1, -1.0, 1.0)
    with pytest.raises(ValueError, match="must be below"):
        TwoHot(8, 1.0, -1.0)
    with pytest.raises(ValueError, match="label_type='onehot'"):
        TwoHot(8, -1.0, 1.0, label_type="onehot")


def _update_on_rank(rank: int, store: str, value: torch.Tensor, mask: torch.Tensor, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    popart, norm = PopArt(3), InputNorm(3)
    popart.update(value[rank], mask[rank, ..., None, None])
    norm.update(value[rank, ..., 0], mask[rank])
    torch.save({"popart": popart.state_dict(), "norm": norm.state_dict()}, f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.processes
def test_every_rank_holds_the_statistics_of_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    value, mask = torch.randn(2, 4, 5, 3, 1), torch.rand(2, 4, 5) > 0.5
    arguments = (str(tmp_path / "store"), value, mask, str(tmp_path))
    mp.start_processes(_update_on_rank, arguments, nprocs=2, start_method="spawn")
    popart, norm = PopArt(3), InputNorm(3)
    popart.update(value, mask[..., None, None])
    norm.update(value[..., 0], mask)
    expected = {"popart": popart.state_dict(), "norm": norm.state_dict()}
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for module, state in expected.items():
        for name, buffer in state.items():
            assert torch.equal(ranks[0][module][name], ranks[1][module][name])
            close(ranks[0][module][name], buffer)
    with pytest.raises(ValueError, match="sigma=0.0 must be above 0"):
        TwoHot(8, -1.0, 1.0, label_type="hlgauss", sigma=0.0)
