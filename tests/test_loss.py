from __future__ import annotations

import pytest
import torch
from torch import nn

import loss

RANDOM = torch.Generator().manual_seed(0)


def make(name: str) -> tuple:
    """(function, prediction (2, ...), target, valid) of odd size."""
    valid = torch.rand(2, 7, 9, generator=RANDOM) > 0.3
    if name == "cross_entropy":
        return (
            loss.cross_entropy,
            torch.randn(2, 5, 7, 9, generator=RANDOM),
            torch.randint(0, 5, (2, 7, 9), generator=RANDOM),
            valid,
        )
    if name == "berhu":
        return loss.berhu, torch.rand(2, 7, 9, generator=RANDOM) * 9, torch.rand(2, 7, 9, generator=RANDOM) * 9, valid
    target = nn.functional.normalize(torch.randn(2, 3, 7, 9, generator=RANDOM), dim=1)
    return loss.cosine, torch.randn(2, 3, 7, 9, generator=RANDOM), target, valid


@pytest.mark.parametrize("name", ["cross_entropy", "berhu", "cosine"])
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
            target if name != "cross_entropy" else 50 * nn.functional.one_hot(target, 5).permute(0, 3, 1, 2)
        ).float()
        perfect = perfect.clone().requires_grad_()
        value = function(perfect, target, valid)
        value.backward()
        assert value < 1e-6 and perfect.grad.isfinite().all()

    def test_half_precision_is_computed_in_full(self, name):
        function, prediction, target, valid = make(name)
        assert function(prediction.half(), target, valid).dtype == torch.float32


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])])
def test_cross_entropy_equals_torch(weights):
    _, logits, target, valid = make("cross_entropy")
    expected = nn.CrossEntropyLoss(weights, ignore_index=-1)(logits, target.where(valid, torch.tensor(-1)))
    assert torch.allclose(loss.cross_entropy(logits, target, valid, weights), expected)


def test_berhu_by_hand():
    # Errors 0.1, 0.5 and 2: c = 0.4. Linear below it, (e^2 + c^2) / 2c above.
    prediction, target = torch.tensor([[[1.1, 2.5, 0.0]]]), torch.tensor([[[1.0, 2.0, 2.0]]])
    expected = (0.1 + (0.25 + 0.16) / 0.8 + (4 + 0.16) / 0.8) / 3
    assert loss.berhu(prediction, target, torch.ones(1, 1, 3, dtype=torch.bool)).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_cosine_by_hand():
    prediction = torch.tensor([[2.0, 0, 0], [0, 3, 0]]).T.reshape(1, 3, 1, 2)
    target = torch.tensor([[1.0, 0, 0], [1, 0, 0]]).T.reshape(1, 3, 1, 2)
    assert loss.cosine(prediction, target, torch.ones(1, 1, 2, dtype=torch.bool)).item() == pytest.approx(0.5)
