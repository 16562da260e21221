from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import loss

RANDOM = torch.Generator().manual_seed(0)


def mean_of(function: Callable[..., loss.Loss]) -> Callable[..., torch.Tensor]:
    return lambda *arguments: loss.mean(function(*arguments))


def make(name: str) -> tuple:
    """(function, prediction (2, ...), target, valid) of odd size."""
    valid = torch.rand(2, 7, 9, generator=RANDOM) > 0.3
    if name in ("cross_entropy", "dice"):
        return (
            mean_of(getattr(loss, name)),
            torch.randn(2, 5, 7, 9, generator=RANDOM),
            torch.randint(0, 5, (2, 7, 9), generator=RANDOM),
            valid,
        )
    if name in ("berhu", "l1", "log_l1"):
        return (
            mean_of(getattr(loss, name)),
            torch.rand(2, 7, 9, generator=RANDOM) * 9,
            torch.rand(2, 7, 9, generator=RANDOM) * 9,
            valid,
        )
    target = nn.functional.normalize(torch.randn(2, 3, 7, 9, generator=RANDOM), dim=1)
    return mean_of(loss.cosine), torch.randn(2, 3, 7, 9, generator=RANDOM), target, valid


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "berhu", "l1", "log_l1", "cosine"])
class TestEveryLoss:
    def test_invalid_pixels_do_not_count(self, name):
        function, prediction, target, valid = make(name)
        expected = function(prediction, target, valid)
        mask = valid if prediction.ndim == 3 else valid[:, None].expand_as(prediction)
        garbage = torch.where(mask, prediction, torch.full_like(prediction, 1e4))
        assert torch.equal(function(garbage, target, valid), expected)

    def test_half_valid_equals_all_valid(self, name):
        # The same values twice, once invalid: a mean over all pixels instead of the valid ones would halve it.
        function, prediction, target, valid = make(name)
        everything = torch.ones_like(valid)
        once = function(prediction, target, everything)
        half = torch.cat([everything, ~everything])
        assert torch.allclose(function(torch.cat([prediction] * 2), torch.cat([target] * 2), half), once)

    def test_nothing_valid_gives_zero_with_zero_gradient(self, name):
        function, prediction, target, valid = make(name)
        prediction = prediction.requires_grad_()
        value = function(prediction, target, torch.zeros_like(valid))
        value.backward()
        assert value == 0 and torch.equal(prediction.grad, torch.zeros_like(prediction))

    def test_a_perfect_prediction_has_a_finite_gradient(self, name):
        function, _, target, valid = make(name)
        perfect = (
            50 * nn.functional.one_hot(target, 5).permute(0, 3, 1, 2) if target.dtype == torch.long else target
        ).float()
        perfect = perfect.clone().requires_grad_()
        value = function(perfect, target, valid)
        value.backward()
        assert value < 1e-6 and perfect.grad.isfinite().all()

    def test_half_precision_is_computed_in_full(self, name):
        function, prediction, target, valid = make(name)
        assert function(prediction.half(), target, valid).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])])
def test_cross_entropy_equals_torch(weights, smoothing):
    _, logits, target, valid = make("cross_entropy")
    same = nn.CrossEntropyLoss(weights, ignore_index=-1, label_smoothing=smoothing)
    expected = same(logits, target.where(valid, torch.tensor(-1)))
    assert torch.allclose(loss.mean(loss.cross_entropy(logits, target, valid, weights, smoothing)), expected)


def test_berhu_by_hand():
    # Errors 0.1, 0.5 and 2: c = 0.4. Linear below it, (e^2 + c^2) / 2c above.
    prediction, target = torch.tensor([[[1.1, 2.5, 0.0]]]), torch.tensor([[[1.0, 2.0, 2.0]]])
    expected = (0.1 + (0.25 + 0.16) / 0.8 + (4 + 0.16) / 0.8) / 3
    total, weight = loss.berhu(prediction, target, torch.ones(1, 1, 3, dtype=torch.bool))
    assert total.item() == pytest.approx(3 * expected, rel=1e-5) and weight == 3


def test_l1_by_hand_in_metres_and_in_logarithms():
    prediction, target, valid = (
        torch.tensor([[[1.0, 8.0, 0.0]]]),
        torch.tensor([[[2.0, 2.0, 0.0]]]),
        torch.ones(1, 1, 3),
    )
    valid[..., 2] = 0
    assert loss.mean(loss.l1(prediction, target, valid.bool())).item() == pytest.approx((1 + 6) / 2)
    assert loss.mean(loss.log_l1(prediction, target, valid.bool())).item() == pytest.approx(3 * math.log(2) / 2)


def test_gradient_by_hand():
    target = torch.tensor([[[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]]])
    valid = torch.tensor([[[True, True, False], [True, True, True]]])
    assert loss.gradient(target + 0.7, target, valid).item() == pytest.approx(0, abs=1e-6)  # a shift has no gradient
    bent = target + torch.tensor([[[0.0, 0.5, 9.0], [0.0, 0.0, 0.0]]])
    # The 0.5 differs from its neighbors at the left and below; the pixel that is not valid has no neighbors.
    assert loss.gradient(bent, target, valid).item() == pytest.approx(1.0)


def test_cosine_by_hand():
    prediction = torch.tensor([[2.0, 0, 0], [0, 3, 0]]).T.reshape(1, 3, 1, 2)
    target = torch.tensor([[1.0, 0, 0], [1, 0, 0]]).T.reshape(1, 3, 1, 2)
    total, weight = loss.cosine(prediction, target, torch.ones(1, 1, 2, dtype=torch.bool))
    assert total.item() == pytest.approx(1) and weight == 2


def test_cross_entropy_of_two_classes_is_the_binary_one():
    valid = torch.rand(2, 7, 9, generator=RANDOM) > 0.3
    target = torch.randint(0, 2, (2, 7, 9), generator=RANDOM)
    logits = (3 * torch.randn(2, 2, 7, 9, generator=RANDOM)).requires_grad_()
    ours = loss.mean(loss.cross_entropy(logits, target, valid))
    (gradient,) = torch.autograd.grad(ours, logits)
    difference = logits[:, 1] - logits[:, 0]
    binary = nn.functional.binary_cross_entropy_with_logits(difference[valid], target[valid].float())
    assert torch.allclose(ours, binary)
    assert torch.allclose(gradient, torch.autograd.grad(binary, logits)[0], atol=1e-7)


def known_dice(*scores: float) -> float:
    return pytest.approx(1 - sum(scores) / len(scores), abs=1e-6)


def test_dice_by_hand():
    # Shares of class 1: 0.8, 0.6, 0.1, of which the first two pixels are class 1; the fourth has no label.
    share = torch.tensor([0.8, 0.6, 0.1, float("nan")])
    logits = torch.stack([(1 - share).log(), share.log()]).view(1, 2, 1, 4)
    target, valid = torch.tensor([[[1, 1, 0, 1]]]), torch.tensor([[[True, True, True, False]]])
    front = 2 * (0.8 + 0.6) / (0.64 + 0.36 + 0.01 + 2)
    back = 2 * 0.9 / (0.04 + 0.16 + 0.81 + 1)
    dice = mean_of(loss.dice)
    assert dice(logits, target, valid).item() == known_dice(front, back)
    # Only class 1 occurs in the first two pixels: class 0 is left out.
    assert dice(logits, target, valid & (target == 1)).item() == known_dice(2 * 1.4 / (0.64 + 0.36 + 2))


@pytest.mark.parametrize(
    ("guess", "expected"), [((1, 1, 0, 0), 0.0), ((0, 0, 1, 1), 1.0), ((1, 0, 0, 0), 1 - (2 / 3 + 4 / 5) / 2)]
)
def test_dice_of_certain_predictions_is_one_minus_the_score_of_sets(guess, expected):
    logits = 100 * nn.functional.one_hot(torch.tensor(guess), 2).T.reshape(1, 2, 2, 2).float()
    target = torch.tensor([[[1, 1], [0, 0]]])
    everything = torch.ones_like(target, dtype=torch.bool)
    assert mean_of(loss.dice)(logits, target, everything).item() == pytest.approx(expected)


def test_dice_ignores_nan_where_nothing_is_labeled():
    dice, logits, target, valid = make("dice")
    garbage = logits.masked_fill(~valid[:, None], float("nan")).requires_grad_()
    value = dice(garbage, target.masked_fill(~valid, 255), valid)
    value.backward()
    assert torch.equal(value, dice(logits, target, valid))
    assert not garbage.grad[~valid[:, None].expand_as(garbage)].any()
    assert garbage.grad.isfinite().all() and garbage.grad.any()


def test_dice_takes_the_label_types_of_the_data():
    dice, logits, target, valid = make("dice")
    assert torch.equal(dice(logits, target.to(torch.uint8), valid), dice(logits, target, valid))


@pytest.mark.parametrize("function", [mean_of(loss.dice), mean_of(loss.cross_entropy)], ids=["dice", "cross_entropy"])
def test_gradients_are_those_of_finite_differences(function):
    _, logits, target, valid = make("dice")
    logits, target, valid = logits[:1, :, :2, :3].double().requires_grad_(), target[:1, :2, :3], valid[:1, :2, :3]
    assert valid.any() and not valid.all()
    # The losses compute in fp32 whatever comes in, hence the large step.
    assert torch.autograd.gradcheck(lambda x: function(x, target, valid).double(), logits, eps=1e-2, atol=2e-4)
