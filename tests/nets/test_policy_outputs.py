"""Families of distributions: which is used where, how outputs become parameters, and what masks leave of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amago_ray import config
from amago_ray.nets.policy_outputs import (
    GMM,
    Beta,
    Discrete,
    Multibinary,
    Multidiscrete,
    PolicyOutput,
    TanhGaussian,
    choose_policy_output,
    default_policy_output,
    softplus_bounded_positive,
    tanh_bounded_positive,
)
from amago_ray.specs import ActionSpec

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
torch.set_num_threads(1)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


# --- which family ----------------------------------------------------------------------------------------------------


def test_defaults_and_errors() -> None:
    for spec, family in ((DISCRETE, Discrete), (CONTINUOUS, TanhGaussian), (MULTIBINARY, Multibinary)):
        assert default_policy_output(spec) is family
    assert default_policy_output(MULTIDISCRETE) is Multidiscrete
    assert [family.is_discrete for family, _ in FAMILIES] == [True] + [False] * 5
    assert [family.has_rsample for family, _ in FAMILIES] == [True] * 5 + [False]
    with pytest.raises(ValueError, match="TanhGaussian fits continuous actions, but the environment's are discrete"):
        TanhGaussian(DISCRETE)
    with pytest.raises(ValueError, match="clip_prob_low=0.0"):
        Discrete(DISCRETE, clip_prob_low=0.0)
    with pytest.raises(ValueError, match="inside"):
        Beta(CONTINUOUS, clip_actions_on_log_prob=(-1.0, 1.0))
    with pytest.raises(ValueError, match="gmm_modes=0"):
        GMM(CONTINUOUS, gmm_modes=0)


def test_a_family_for_all_spaces_or_for_its_kind_or_the_default() -> None:
    kinds = {"continuous_dist_type": Beta, "discrete_dist_type": Discrete}
    assert type(choose_policy_output(CONTINUOUS, **kinds)) is Beta
    assert type(choose_policy_output(CONTINUOUS, policy_output_type=GMM, **kinds)) is GMM
    assert type(choose_policy_output(DISCRETE, **kinds)) is Discrete
    assert type(choose_policy_output(MULTIDISCRETE, **kinds)) is Multidiscrete
    assert type(choose_policy_output(MULTIBINARY, continuous_dist_type=Multibinary)) is Multibinary
    assert type(choose_policy_output(CONTINUOUS, discrete_dist_type=Discrete)) is TanhGaussian
    with pytest.raises(ValueError, match="Beta fits continuous actions, but the environment's are multibinary"):
        choose_policy_output(MULTIBINARY, **kinds)


# --- positive parameters ---------------------------------------------------------------------------------------------


def test_bounded_positive_functions() -> None:
    raw = torch.tensor([-50.0, 0.0, 50.0])
    close(tanh_bounded_positive(raw, 0.01, 4.0), torch.tensor([0.01, 0.2, 4.0]))
    close(softplus_bounded_positive(raw, 0.5, None), torch.tensor([0.5, 0.5 + math.log(2), 50.5]))
    close(softplus_bounded_positive(raw, 0.5, 2.0), torch.tensor([0.5, 0.5 + math.log(2), 2.0]))


@pytest.mark.parametrize(
    "named", ["tanh", "tanh_bounded_positive", tanh_bounded_positive], ids=["short", "name", "function"]
)
def test_activations_by_name_and_as_functions(named: object) -> None:
    raw = torch.randn(4, 6)
    close(
        TanhGaussian(CONTINUOUS, std_low=0.1, std_high=0.7, std_activation=named)(raw).std,
        tanh_bounded_positive(raw[:, 3:], 0.1, 0.7),
    )


def test_std_bounds_and_activations() -> None:
    raw = 3 * torch.randn(4, 6)
    gaussian = TanhGaussian(CONTINUOUS, std_low=0.2, std_high=None, std_activation="softplus")
    close(gaussian(raw).std, F.softplus(raw[:, 3:]) + 0.2)
    own = TanhGaussian(CONTINUOUS, std_activation=lambda x, low, high: low + (high - low) * torch.sigmoid(x))
    close(own(raw).std, math.exp(-5) + (math.exp(2) - math.exp(-5)) * torch.sigmoid(raw[:, 3:]))

    params = torch.randn(4, 2 * 3 * 2 + 2)
    gmm = GMM(CONTINUOUS, gmm_modes=2, std_low=0.3, std_high=0.4)
    close(gmm(params).std, (F.softplus(params[:, 6:12].view(4, 2, 3)) + 0.3).clamp(max=0.4))
    close(GMM(CONTINUOUS, 2)(params).std, F.softplus(params[:, 6:12].view(4, 2, 3)) + 1e-4)

    dist = Beta(CONTINUOUS, alpha_low=1.5, beta_low=0.5, beta_high=0.9)(raw)
    close(dist.alpha, F.softplus(raw[:, :3]) + 1.5)
    close(dist.beta, (F.softplus(raw[:, 3:]) + 0.5).clamp(max=0.9))
    tanh = Beta(CONTINUOUS, alpha_high=5.0, beta_high=3.0, std_activation="tanh")(raw)
    close(tanh.beta, tanh_bounded_positive(raw[:, 3:], 1.0001, 3.0))


def test_gin_gives_functions_and_names() -> None:
    config.load(
        [],
        [
            "TanhGaussian.std_activation = @softplus_bounded_positive",
            "TanhGaussian.std_high = None",
            "GMM.std_activation = 'tanh'",
            "GMM.std_high = 2.0",
            "Beta.std_activation = @tanh_bounded_positive",
            "Beta.alpha_high = 9.0",
            "Beta.beta_high = 9.0",
        ],
    )
    raw = torch.randn(4, 6)
    close(TanhGaussian(CONTINUOUS)(raw).std, F.softplus(raw[:, 3:]) + math.exp(-5))
    assert GMM(CONTINUOUS)(100 * torch.randn(8, 35)).std.max() <= 2.001
    assert Beta(CONTINUOUS)(100 * torch.randn(8, 6)).alpha.max() <= 9.001


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (TanhGaussian, {"std_low": 2.0, "std_high": 1.0}, "TanhGaussian needs 0 < std_low < std_high, not std_low=2.0"),
        (TanhGaussian, {"std_activation": "tan"}, r"TanhGaussian.std_activation='tan' is unknown; did you mean 'tanh'"),
        (TanhGaussian, {"std_high": None}, "TanhGaussian.std_high=None: std_activation 'tanh' needs a bound above"),
        (GMM, {"std_low": 0.0}, "GMM needs 0 < std_low < std_high, not std_low=0.0"),
        (GMM, {"std_activation": "tanh"}, "GMM.std_high=None"),
        (Beta, {"alpha_low": -1.0}, "Beta needs 0 < alpha_low < alpha_high, not alpha_low=-1.0"),
        (Beta, {"beta_high": 1.0}, "Beta needs 0 < beta_low < beta_high, not beta_low=1.0001, beta_high=1.0"),
    ],
)
def test_bounds_and_activations_are_checked(
    family: type[PolicyOutput], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        family(CONTINUOUS, **settings)


# --- relaxations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, spec", FAMILIES[:2])
def test_the_temperature_of_relaxed_categories(family: type[PolicyOutput], spec: ActionSpec) -> None:
    """The gradient is that of softmax((log p + gumbel) / temperature), by gin."""
    gradients = []
    for temperature in (0.5, 4.0):
        config.load([], [f"DiscreteLikeContinuous.gumbel_softmax_temperature = {temperature}"])
        logits = torch.zeros(400, spec.vector_size, requires_grad=True)
        torch.manual_seed(0)
        gumbel = [-torch.empty(400, n).exponential_().log() for n in spec.nvec]
        torch.manual_seed(0)
        weight = torch.arange(float(spec.vector_size))
        (gradient,) = torch.autograd.grad((family(spec)(logits).rsample() * weight).sum(), logits)
        again = logits.detach().requires_grad_()
        parts = zip(again.split(spec.nvec, dim=-1), gumbel, strict=True)
        soft = torch.cat([((x.log_softmax(dim=-1) + g) / temperature).softmax(dim=-1) for x, g in parts], dim=-1)
        (expected,) = torch.autograd.grad((soft * weight).sum(), again)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)
        gradients.append(gradient.abs().mean())
    assert gradients[0] > 1.5 * gradients[1]
    config.load([], ["DiscreteLikeContinuous.gumbel_softmax_temperature = 0"])
    with pytest.raises(ValueError, match="gumbel_softmax_temperature=0: it must be above 0"):
        family(spec)


# --- masks -----------------------------------------------------------------------------------------------------------


def masks(spec: ActionSpec, num: int) -> Tensor:
    """Random ones with at least one legal category in every part."""
    parts = []
    for n in spec.nvec:
        legal = torch.rand(num, n) < 0.4
        parts.append(legal.scatter(-1, torch.randint(n, (num, 1)), True))
    return torch.cat(parts, dim=-1)


by_masked_family = pytest.mark.parametrize("family, spec", FAMILIES[:2])


@by_masked_family
def test_masked_probabilities(family: type[PolicyOutput], spec: ActionSpec) -> None:
    """Exactly 0 where illegal; among the rest a softmax, clipped and renormalised by the same rule as without masks."""
    torch.manual_seed(0)
    logits, legal = 4 * torch.randn(40, spec.vector_size), masks(spec, 40)
    dist = family(spec).masked(logits, legal)
    assert torch.equal(dist.probs == 0.0, ~legal)
    for action in (dist.sample(), dist.rsample(), dist.mode, dist.mean, dist.tempered(5.0).sample()):
        assert action[~legal].eq(0.0).all()
    parts = zip(*(x.split(spec.nvec, dim=-1) for x in (dist.probs, logits, legal)), strict=True)
    for probs, raw, may in parts:
        for row in range(40):
            few = ActionSpec("discrete", (), "int64", int(may[row].sum()), (int(may[row].sum()),))
            close(probs[row, may[row]], Discrete(few)(raw[row, may[row]]).probs)
    assert dist.entropy().isfinite().all() and dist.log_prob(dist.sample()).isfinite().all()


@by_masked_family
def test_gradients_through_masks(family: type[PolicyOutput], spec: ActionSpec) -> None:
    torch.manual_seed(0)
    logits, legal = torch.randn(50, spec.vector_size, requires_grad=True), masks(spec, 50)
    dist = family(spec).masked(logits, legal)
    illegal_too = family(spec)(logits.detach()).sample()
    value = torch.randn(50, spec.vector_size)
    outputs: list[Callable[[], Tensor]] = [
        lambda: dist.log_prob(dist.sample()).sum(),
        lambda: dist.log_prob(illegal_too).sum(),
        lambda: dist.entropy().sum(),
        lambda: (dist.probs * value).sum(),
        lambda: (dist.rsample() * value).sum(),
    ]
    for output in outputs:
        (grad,) = torch.autograd.grad(output(), logits, retain_graph=True)
        assert grad.isfinite().all() and grad.any()
        assert not grad[~legal].any()


@by_masked_family
def test_where_nothing_is_legal_everything_is(family: type[PolicyOutput], spec: ActionSpec) -> None:
    """As in the last state of a rollout; of several sub-actions each by itself."""
    logits, nothing = torch.randn(3, spec.vector_size), torch.zeros(3, spec.vector_size, dtype=torch.bool)
    policy = family(spec)
    close(policy.masked(logits, nothing).probs, policy(logits).probs)
    if spec is MULTIDISCRETE:
        nothing[:, 4] = True
        probs = policy.masked(logits, nothing).probs
        close(probs, torch.cat((policy(logits).probs[:, :4], torch.tensor([[1.0, 0.0]]).expand(3, 2)), dim=-1))


@by_masked_family
def test_masked_actions_from_the_buffer(family: type[PolicyOutput], spec: ActionSpec) -> None:
    """Softened toward legal actions alone; an action that was taken counts as legal."""
    policy, legal = family(spec), masks(spec, 100)
    taken = policy.masked(torch.randn(100, spec.vector_size), legal).sample()
    softened = policy.action_from_buffer(taken, legal)
    assert torch.equal(softened == 0.0, ~legal)
    sums = torch.stack([part.sum(dim=-1) for part in softened.split(spec.nvec, dim=-1)])
    close(sums, torch.ones_like(sums))
    close(policy.action_from_buffer(taken, torch.ones_like(legal)), policy.action_from_buffer(taken))
    stray = torch.zeros(1, spec.vector_size)
    starts = [0, 4][: len(spec.nvec)]
    stray[:, starts] = 1.0
    may = torch.ones_like(stray, dtype=torch.bool)
    may[:, starts] = False
    close(policy.action_from_buffer(stray, may), policy.action_from_buffer(stray))


@pytest.mark.parametrize("family, spec", FAMILIES[2:])
def test_families_without_illegal_actions(family: type[PolicyOutput], spec: ActionSpec) -> None:
    policy = family(spec)
    with pytest.raises(ValueError, match=f"{family.__name__} cannot leave out illegal actions"):
        policy.masked(torch.zeros(1, policy.num_params), torch.ones(1, spec.vector_size, dtype=torch.bool))


CATEGORIES = {
    Discrete: ActionSpec("discrete", (), "int64", 3, (3,)),
    Multidiscrete: ActionSpec("multidiscrete", (2,), "int64", 6, (3, 3)),
}


@pytest.mark.parametrize("family", CATEGORIES)
def test_a_gradient_that_leads_back_changes_no_number(family: type[Discrete] | type[Multidiscrete]) -> None:
    spec = CATEGORIES[family]
    logits = 6 * torch.randn(50, spec.vector_size, generator=torch.Generator().manual_seed(0))
    legal = torch.rand(50, spec.vector_size, generator=torch.Generator().manual_seed(1)) < 0.7
    plain, inward = family(spec), family(spec, inward_gradient=True)
    action = plain(logits).mode
    for expected, actual in (
        (plain(logits), inward(logits)),
        (plain.masked(logits, legal), inward.masked(logits, legal)),
    ):
        assert torch.equal(actual.log_prob(action), expected.log_prob(action))
        assert torch.equal(actual.mean, expected.mean)


def test_between_the_bounds_both_gradients_are_the_same() -> None:
    spec = CATEGORIES[Discrete]
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gradients = [
        torch.autograd.grad(family(logits).log_prob(torch.eye(3)[0]).sum(), logits)[0]
        for family in (Discrete(spec), Discrete(spec, inward_gradient=True))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("logit", [8.0, 25.0])  # at e^-25 the gradient of a softmax by itself is nothing
@pytest.mark.parametrize("cloning", [False, True])
def test_an_action_that_fell_to_the_floor_comes_back_once_it_is_worth_it(cloning: bool, logit: float) -> None:
    """As the second arm does in a state where the first one has been chosen for long, and pays no more."""
    chosen = {}
    for inward in (False, True):
        family = Discrete(CATEGORIES[Discrete], inward_gradient=inward)
        logits = torch.tensor([logit, 0.0, 0.0], requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(300):
            dist = family(logits)
            loss = -dist.log_prob(torch.eye(3)[1]).sum() if cloning else -(dist.mean * torch.eye(3)[1]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        chosen[inward] = int(family(logits).probs.argmax())
    assert chosen == {False: 0, True: 1}


def test_beyond_the_bounds_the_gradient_is_that_of_a_softmax_at_them() -> None:
    family = Discrete(CATEGORIES[Discrete], inward_gradient=True)
    far = torch.tensor([40.0, 0.0, -3.0], requires_grad=True)
    probs = family(far).probs
    there = probs.detach().log().requires_grad_()
    values = torch.tensor([0.0, 10.0, 5.0])
    (gradient,) = torch.autograd.grad(-(probs * values).sum(), far)
    (expected,) = torch.autograd.grad(-(there.softmax(dim=-1) * values).sum(), there)
    torch.testing.assert_close(gradient, expected)
    assert gradient[1] < -0.009


@pytest.mark.parametrize("family", CATEGORIES)
@pytest.mark.parametrize("num", [400, 900, 3000])
def test_one_of_many_actions_is_learned(family: type[Discrete] | type[Multidiscrete], num: int) -> None:
    """A fresh policy lies below 0.001 there, and has to take a gradient all the same."""
    output = family(ActionSpec(family.kinds[0], () if family is Discrete else (1,), "int64", num, (num,)))
    torch.manual_seed(0)
    logits = (0.3 * torch.randn(num)).requires_grad_()
    wanted = F.one_hot(torch.tensor(7), num).float()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-output(logits).log_prob(wanted)).sum().backward()
        optimizer.step()
    assert output(logits).probs[7] > 0.65
    assert output._lowest(500) == 0.001 and output._lowest(501) == 0.1 / 501


def test_an_illegal_action_takes_no_gradient() -> None:
    family = Discrete(CATEGORIES[Discrete], inward_gradient=True)
    logits = torch.tensor([40.0, 0.0, 0.0], requires_grad=True)
    legal = torch.tensor([True, True, False])
    (gradient,) = torch.autograd.grad(-family.masked(logits, legal).log_prob(torch.eye(3)[1]).sum(), logits)
    assert gradient[1] < -0.9 and gradient[2] == 0.0


def test_what_is_out_of_bounds_is_led_no_farther() -> None:
    family = Discrete(CATEGORIES[Discrete], inward_gradient=True)
    logits = torch.tensor([9.0, 0.0, 0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(-family(logits).log_prob(torch.eye(3)[0]).sum(), logits)
    assert torch.equal(gradient, torch.zeros(3))
