"""Every family equals the reference's numbers, samples what it scores, and passes gradients where it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from amago_ray.config.value_checks import LARGEST_TEMPERATURE, LEAST_TEMPERATURE
from amago_ray.nets.distributions import (
    ActionDistribution,
    BetaDistribution,
    GMMDistribution,
    OneHotDistribution,
    TanhGaussianDistribution,
)
from amago_ray.nets.policy_outputs import (
    GMM,
    Beta,
    Discrete,
    Multibinary,
    Multidiscrete,
    PolicyOutput,
    TanhGaussian,
)
from amago_ray.specs import ActionSpec

PARTS = np.load(Path(__file__).parents[1] / "golden" / "parts.npz")
DISCRETE = ActionSpec("discrete", (), "int64", 5, (5,))
CONTINUOUS = ActionSpec("continuous", (3,), "float32", 3)
MULTIBINARY = ActionSpec("multibinary", (4,), "int8", 4)
MULTIDISCRETE = ActionSpec("multidiscrete", (2,), "int64", 6, (4, 2))
FAMILIES: list[tuple[type[PolicyOutput], ActionSpec]] = [
    (Discrete, DISCRETE),
    (Multidiscrete, MULTIDISCRETE),
    (Multibinary, MULTIBINARY),
    (TanhGaussian, CONTINUOUS),
    (Beta, CONTINUOUS),
    (GMM, CONTINUOUS),
]
by_family = pytest.mark.parametrize("family, spec", FAMILIES, ids=lambda x: getattr(x, "__name__", ""))


def part(name: str) -> torch.Tensor:
    return torch.from_numpy(PARTS[f"dist/{name}"])


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family, spec", [pair for pair in FAMILIES if pair[0] is not Multidiscrete])  # ours alone
def test_log_prob_and_mean_equal_the_reference(family: type[PolicyOutput], spec: ActionSpec) -> None:
    name = family.__name__
    params, action, expected = part(f"{name}/params"), part(f"{name}/action"), part(f"{name}/log_prob")
    policy = family(spec)
    assert policy.num_params == params.shape[-1]
    dist = policy(params)
    if family is Discrete:
        action, expected = torch.nn.functional.one_hot(action, 5).float(), expected.unsqueeze(-1)
    raw = dist.log_prob_dims(action)
    close(raw, expected)
    reduced = raw.mean(dim=-1, keepdim=True) if family is Multibinary else raw.sum(dim=-1, keepdim=True)
    close(dist.log_prob(action), reduced)
    if f"dist/{name}/mean" in PARTS:
        close(dist.mean, part(f"{name}/mean"))


def test_discrete_equals_the_reference() -> None:
    policy = Discrete(DISCRETE)
    dist = policy(part("Discrete/params"))
    close(dist.probs, part("Discrete/probs"))
    close(dist.entropy().squeeze(-1), part("Discrete/entropy"))
    close(policy.action_from_buffer(part("Discrete/action_from_buffer_in")), part("Discrete/action_from_buffer_out"))


def test_discrete_normaliser_takes_no_gradient() -> None:
    logits = torch.tensor([2.0, 1.0, -0.5, -9.0], requires_grad=True)
    spec = ActionSpec("discrete", (), "int64", 4, (4,))
    probs = Discrete(spec)(logits).probs
    softmax = logits.detach().softmax(dim=-1)
    total = softmax.clamp(0.001, 0.99).sum()
    (grad,) = torch.autograd.grad(probs[0], logits)
    one_hot = torch.tensor([1.0, 0.0, 0.0, 0.0])
    close(grad, softmax[0] * (one_hot - softmax) / total)
    (clipped,) = torch.autograd.grad(Discrete(spec)(logits).probs[3], logits)
    assert clipped.eq(0).all()


def test_multidiscrete_is_independent_discretes() -> None:
    torch.manual_seed(0)
    params = torch.randn(3, 2, 6)
    policy = Multidiscrete(MULTIDISCRETE)
    dist = policy(params)
    parts = [
        Discrete(ActionSpec("discrete", (), "int64", n, (n,)))(p) for n, p in zip((4, 2), params.split((4, 2), -1))
    ]
    action = dist.sample()
    taken = action.split((4, 2), dim=-1)
    log_probs = torch.cat([p.log_prob(a) for p, a in zip(parts, taken)], dim=-1)
    close(dist.log_prob_dims(action), log_probs)
    close(dist.log_prob(action), log_probs.sum(dim=-1, keepdim=True))
    close(dist.entropy(), parts[0].entropy() + parts[1].entropy())
    close(dist.mode, torch.cat([p.mode for p in parts], dim=-1))
    softened = policy.action_from_buffer(action)
    close(softened.split((4, 2), dim=-1)[1].sum(dim=-1), torch.ones(3, 2))
    assert softened.min() > 0 and torch.equal(softened.split((4, 2), -1)[0].argmax(-1), taken[0].argmax(-1))


@by_family
def test_shapes_and_ranges(family: type[PolicyOutput], spec: ActionSpec) -> None:
    torch.manual_seed(0)
    policy = family(spec)
    dist = policy(3 * torch.randn(7, 5, 2, policy.num_params))
    size = spec.vector_size
    assert dist.mean.shape == dist.mode.shape == (7, 5, 2, size)
    for action in (dist.sample(), dist.mode, *([dist.rsample()] if policy.has_rsample else [])):
        assert action.shape == (7, 5, 2, size)
        assert dist.log_prob(action).shape == dist.entropy().shape == (7, 5, 2, 1)
        assert dist.log_prob(action).isfinite().all() and dist.entropy().isfinite().all()
        if spec.kind == "continuous":
            assert action.abs().max() <= 1
        else:
            assert set(action.unique().tolist()) <= {0.0, 1.0}
        if spec.kind == "discrete":
            assert action.sum(dim=-1).eq(1).all()
    one_gamma = dist.sample()[:, :, :1]
    assert dist.log_prob(one_gamma).shape == (7, 5, 2, 1)
    close(dist.log_prob(one_gamma), dist.log_prob(one_gamma.expand(7, 5, 2, size)))


@by_family
def test_samples_follow_the_distribution(family: type[PolicyOutput], spec: ActionSpec) -> None:
    torch.manual_seed(0)
    policy = family(spec)
    params = 0.5 * torch.randn(policy.num_params)
    dist = policy(params.expand(20_000, -1))
    entropy = dist.entropy()[0] if family in (Discrete, Multidiscrete, Multibinary, Beta) else dist.entropy().mean()
    for action in [dist.sample(), *([dist.rsample()] if policy.has_rsample else [])]:
        if family not in (TanhGaussian, GMM):  # whose means are of the centres
            torch.testing.assert_close(action.mean(dim=0), dist.mean[0], rtol=0, atol=0.02)
        surprise = -dist.log_prob_dims(action).sum(dim=-1).mean()
        # clipping actions in log_prob makes the ends look likelier than they are
        torch.testing.assert_close(surprise, entropy.squeeze(), rtol=0.05, atol=0.05)


@by_family
def test_gradients_reach_the_parameters(family: type[PolicyOutput], spec: ActionSpec) -> None:
    torch.manual_seed(0)
    policy = family(spec)
    params = torch.randn(6, policy.num_params, requires_grad=True)
    dist = policy(params)
    assert not dist.sample().requires_grad
    (grad,) = torch.autograd.grad(dist.log_prob(dist.sample()).sum(), params, retain_graph=True)
    assert grad.isfinite().all() and grad.abs().sum() > 0
    if policy.has_rsample:
        weights = torch.randn(spec.vector_size)
        (grad,) = torch.autograd.grad((dist.rsample() * weights).sum(), params)
        assert grad.isfinite().all() and grad.abs().sum() > 0
    else:
        with pytest.raises(NotImplementedError, match="no differentiable samples"):
            dist.rsample()


def test_straight_through_gradient_points_to_the_better_category() -> None:
    torch.manual_seed(0)
    logits = torch.zeros(2000, 5, requires_grad=True)
    action = Discrete(DISCRETE)(logits).rsample()
    assert set(action.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    (grad,) = torch.autograd.grad(action[:, 3].sum(), logits)
    assert grad.mean(dim=0)[3] > 0 and (grad.mean(dim=0)[[0, 1, 2, 4]] < 0).all()


def test_gmm_mode_is_the_heaviest_component() -> None:
    params = torch.zeros(35)
    params[6:9] = torch.tensor([0.1, -0.2, 0.3])  # the loc of mode 2
    params[32] = 3.0
    close(GMM(CONTINUOUS)(params).mode, torch.tanh(params[6:9]))


@pytest.mark.parametrize("loc, std, dims", [(7.2543, 1e-4, 2), (8.0, 1e-2, 1), (-30.0, 0.5, 3), (0.3, 0.7, 2)])
def test_the_entropy_of_equal_components_is_that_of_one(loc: float, std: float, dims: int) -> None:
    """Also where tanh rounds to 1 in float32."""
    torch.manual_seed(0)
    locs, stds = torch.full((5000, dims), loc), torch.full((5000, dims), std)
    one = TanhGaussianDistribution(locs, stds, (-0.99, 0.99)).entropy().mean()
    two = (x.unsqueeze(1).expand(-1, 2, -1) for x in (locs, stds))
    mixture = GMMDistribution(*two, torch.tensor([0.5, -1.0]).expand(5000, 2)).entropy().mean()
    torch.testing.assert_close(mixture, one, rtol=0, atol=0.05)


@pytest.mark.parametrize("locs", [(-0.5, 0.8), (6.0, 8.5), (-9.0, 9.0)])
def test_the_entropy_of_two_components_is_the_integral(locs: tuple[float, float]) -> None:
    torch.manual_seed(0)
    stds, weights = (0.3, 0.6), (0.4, 0.6)
    x = np.linspace(-16, 16, 400_001)
    density = sum(w * scipy.stats.norm.pdf(x, loc, std) for w, loc, std in zip(weights, locs, stds))
    log_slope = 2 * (np.log(2) - np.logaddexp(x, -x))
    surprise = log_slope - np.log(np.maximum(density, 1e-300))
    expected = np.trapezoid(density * surprise, x)
    loc, std, logits = (
        each.expand(20_000, 2) for each in torch.tensor(np.stack([locs, stds, np.log(weights)])).float()
    )
    dist = GMMDistribution(loc.unsqueeze(-1), std.unsqueeze(-1), logits)
    assert float(dist.entropy().mean()) == pytest.approx(expected, abs=0.1)


# --- impossible actions ----------------------------------------------------------------------------------------------


def with_zeros() -> OneHotDistribution:
    return OneHotDistribution(torch.tensor([0.0, 0.7, 0.0, 0.3]).expand(5000, 4))


def test_what_has_probability_0_is_never_drawn() -> None:
    torch.manual_seed(0)
    dist = with_zeros()
    for action in (dist.sample(), dist.rsample(), dist.tempered(50.0).sample(), dist.tempered(0.01).sample()):
        assert action[:, [0, 2]].eq(0.0).all()
    for temperature in (LEAST_TEMPERATURE, 0.01, 0.5, 50.0, LARGEST_TEMPERATURE):
        assert dist.tempered(temperature).probs[:, [0, 2]].eq(0.0).all()


def test_a_race_that_stands_still_is_not_won_by_probability_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 / 0 would be NaN, which argmax takes for the largest."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self: self.zero_())
    assert with_zeros().sample()[:, [0, 2]].eq(0.0).all()


def test_impossible_actions_leave_everything_finite() -> None:
    probs = torch.tensor([0.0, 0.7, 0.0, 0.3], requires_grad=True)
    dist = OneHotDistribution(probs)
    assert dist.entropy().item() == pytest.approx(-0.7 * np.log(0.7) - 0.3 * np.log(0.3))
    for action in torch.eye(4):
        log_prob = dist.log_prob(action)
        (grad,) = torch.autograd.grad(log_prob.sum(), probs)
        possible = action @ probs.detach() > 0
        assert log_prob.isfinite() and grad.isfinite().all()
        assert (log_prob > -1.3) if possible else (log_prob < -80 and not grad.any())
    (grad,) = torch.autograd.grad((dist.rsample() * torch.randn(4)).sum(), probs)
    assert grad.isfinite().all() and not grad[[0, 2]].any()


# --- temperature -----------------------------------------------------------------------------------------------------


@by_family
def test_a_temperature_of_1_changes_nothing_and_a_cold_one_gives_the_mode(
    family: type[PolicyOutput], spec: ActionSpec
) -> None:
    torch.manual_seed(0)
    policy = family(spec)
    dist = policy(torch.randn(500, policy.num_params))
    action = dist.sample()
    torch.testing.assert_close(dist.tempered(1.0).log_prob(action), dist.log_prob(action), rtol=1e-4, atol=1e-4)
    cold = dist.tempered(1e-4).sample()
    agrees = ((cold - dist.mode).abs() < 0.02).all(dim=-1).float().mean()
    assert agrees > 0.98
    if family not in (TanhGaussian, GMM):  # a wide Gaussian crowds at the ends that tanh gives it
        assert dist.tempered(1.5).entropy().mean() > dist.entropy().mean()


@by_family
def test_the_coldest_policy_there_may_be(family: type[PolicyOutput], spec: ActionSpec) -> None:
    torch.manual_seed(0)
    policy = family(spec)
    dist = policy(torch.randn(500, policy.num_params))
    cold = dist.tempered(LEAST_TEMPERATURE)
    assert torch.isfinite(cold.mode).all()
    assert ((cold.sample() - dist.mode).abs() < 0.02).all(dim=-1).float().mean() > 0.98


@by_family
def test_the_hottest_policy_there_may_be(family: type[PolicyOutput], spec: ActionSpec) -> None:
    torch.manual_seed(0)
    policy = family(spec)
    hot = policy(torch.randn(500, policy.num_params)).tempered(LARGEST_TEMPERATURE)
    assert hot.sample().isfinite().all()
    if spec.kind != "continuous":
        counts = spec.nvec or (2,) * spec.vector_size
        close(hot.probs[0], torch.cat([torch.full((n if spec.nvec else 1,), 1 / n) for n in counts]))


@pytest.mark.parametrize("alpha", [1.2, 30.0, 1e4, 1e6])
def test_a_beta_of_any_concentration_is_that_of_float64(alpha: float) -> None:
    """Logarithms of gamma functions, taken from one another, lose their digits in float32."""
    a, b = torch.tensor([alpha]), torch.tensor([1.3 * alpha])
    dist, exact = (BetaDistribution(x, y, (-0.99, 0.99)) for x, y in ((a, b), (a.double(), b.double())))
    action = dist.mean + 0.3 * alpha**-0.5
    torch.testing.assert_close(dist.log_prob(action), exact.log_prob(action.double()).float(), rtol=1e-5, atol=1e-4)
    close(dist.entropy(), exact.entropy().float())
    scipy_beta = scipy.stats.beta(float(a.double()), float(b.double()))
    assert float(dist.entropy()) == pytest.approx(scipy_beta.entropy() + np.log(2), abs=1e-3)


def test_temperature_divides_logits() -> None:
    logits = torch.tensor([0.3, -0.4, 1.0, 0.1, 0.0])  # far from the bounds on probabilities
    close(Discrete(DISCRETE)(logits).tempered(0.5).probs, (2 * logits).softmax(dim=-1))
    parts = Multidiscrete(MULTIDISCRETE)(torch.randn(6)).tempered(3.0)
    close(parts.probs[:4].sum(), torch.tensor(1.0))
    close(Multibinary(MULTIBINARY)(torch.tensor([1.0, -2.0, 0.0, 3.0])).tempered(2.0).probs,
          torch.sigmoid(torch.tensor([0.5, -1.0, 0.0, 1.5])))  # fmt: skip


def test_temperature_scales_standard_deviations() -> None:
    torch.manual_seed(0)
    dist = TanhGaussianDistribution(torch.zeros(20_000, 1), torch.full((20_000, 1), 0.4), (-0.99, 0.99))
    assert float(torch.atanh(dist.tempered(0.25).sample()).std()) == pytest.approx(0.1, rel=0.03)
    alpha, beta = torch.full((20_000, 1), 6.0), torch.full((20_000, 1), 3.0)
    for temperature, expected in ((0.5, 0.5), (1.0, 1.0), (1.2, 1.2), (100.0, None)):
        tempered = BetaDistribution(alpha, beta, (-0.99, 0.99)).tempered(temperature)
        close(tempered.mean[0], torch.tensor([1 / 3]))
        assert tempered.beta.min() > 0.999, "no peak at an end"
        if expected is not None:
            std = 2 * np.sqrt((2 / 9) / 10)  # of alpha 6, beta 3 on [-1, 1]
            assert float(tempered.sample().std()) == pytest.approx(expected * std, rel=0.03)


def test_families_without_a_temperature_say_so() -> None:
    class Fixed(OneHotDistribution):
        tempered = ActionDistribution.tempered

    with pytest.raises(NotImplementedError, match=r"Fixed cannot be tempered: set Agent.temperature to 1"):
        Fixed(torch.ones(2)).tempered(0.5)
