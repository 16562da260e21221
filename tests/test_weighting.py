"""Task weightings, on problems whose result can be worked out by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor, nn

from training.weighting import WEIGHTINGS, Weighting, build_weighting

TASKS = ("depth", "normals", "segmentation")


def same(value: Tensor) -> Tensor:
    """The scale of a run without a gradient scaler."""
    return value


def build(name: str, tasks: tuple[str, ...] = TASKS, **weights: float) -> Weighting:
    if name == "upgrad":
        pytest.importorskip("quadprog", reason="needs pip install -r requirements/torchjd.txt")
        pytest.importorskip("torchjd", reason="needs pip install -r requirements/torchjd.txt")
    return build_weighting(name, tasks, weights)


class Line(nn.Module):
    """A point x, shared by heads that multiply x . g_t with a number h_t, at first 1: L_t = h_t (x . g_t)."""

    def __init__(self, gradients: dict[str, tuple[float, ...]], start: tuple[float, ...]) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor(start))
        self.heads = nn.ParameterDict({task: nn.Parameter(torch.ones(())) for task in gradients})
        self.gradients = {task: torch.tensor(value) for task, value in gradients.items()}

    def forward(self) -> tuple[dict[str, Tensor], Tensor]:
        shared = self.point.clone()
        return {task: self.heads[task] * (shared @ g) for task, g in self.gradients.items()}, shared


class Tiny(nn.Module):
    """A network as ours: batch norm in what is shared, one convolution a head. -> {task: loss}, shared"""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(8, 8, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"),
        )  # fmt: skip
        self.heads = nn.ModuleDict({task: nn.Conv2d(8, 2, 3, padding=1) for task in TASKS})

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        shared = self.encoder(images)
        goals = zip(TASKS, (1.0, -2.0, 3.0), strict=True)
        return {task: (self.heads[task](shared).float() - goal).square().mean() for task, goal in goals}, shared


def only(losses: dict[str, Tensor], *tasks: str) -> dict[str, Tensor]:
    return {task: losses[task] for task in tasks}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: item.grad.clone() for name, item in module.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("name", WEIGHTINGS)
class TestEveryWeighting:
    def test_it_begins_with_the_given_weights(self, name):
        factors = build(name, depth=0.25, segmentation=4.0).factors()
        assert factors == pytest.approx({"depth": 0.25, "normals": 1.0, "segmentation": 4.0})

    def test_a_batch_without_labels_changes_nothing(self, name):
        weighting, network = build(name), Tiny()
        before = {key: value.clone() for key, value in weighting.state_dict().items()}
        weighting.backward({}, network(torch.rand(2, 3, 16, 16))[1], same)
        assert not gradients(network) and not gradients(weighting)
        torch.testing.assert_close(dict(weighting.state_dict()), before, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("present", [("normals",), ("segmentation", "depth")])
    def test_an_absent_task_gets_no_gradient(self, name, present):
        weighting, network = build(name), Tiny()
        losses, shared = network(torch.rand(2, 3, 16, 16))
        weighting.backward(only(losses, *present), shared, same)
        for task in TASKS:
            assert (network.heads[task].weight.grad is not None) == (task in present)
            own = [item.grad for key, item in weighting.named_parameters() if key.endswith(task)]
            assert all((gradient is not None) == (task in present) for gradient in own)
            if task not in present:
                assert weighting.factors()[task] == pytest.approx(1)
        assert network.encoder[0].weight.grad.abs().sum() > 0

    def test_one_task_alone_is_plain_backward(self, name):
        weighting, network, images = build(name, normals=3.0), Tiny().eval(), torch.rand(2, 3, 16, 16)
        losses, shared = network(images)
        weighting.backward(only(losses, "normals"), shared, same)
        result = gradients(network)
        network.zero_grad()
        (3 * network(images)[0]["normals"]).backward()
        expected = gradients(network)
        assert result.keys() == expected.keys()
        assert all(torch.allclose(result[key], expected[key], rtol=1e-5) for key in expected)

    def test_gradients_are_scaled_and_add_up(self, name):
        weighting, network, images = build(name), Tiny().eval(), torch.rand(2, 3, 16, 16)
        weighting.backward(*network(images), same)
        once = gradients(network)
        weighting.backward(*network(images), lambda value: 1024 * value)
        both = gradients(network)
        assert all(torch.allclose(both[key], 1025 * once[key], rtol=1e-3, atol=1e-3) for key in once)

    def test_state_goes_on_bit_for_bit(self, name):
        def go(weighting: Weighting, first: int, last: int) -> list[object]:
            optimizer = torch.optim.SGD([*weighting.parameters(), nn.Parameter(torch.zeros(()))], lr=0.1)
            seen = []
            for epoch in range(first, last):
                generator = torch.Generator().manual_seed(epoch)
                network = Line(
                    {task: tuple(torch.randn(2, generator=generator).tolist()) for task in TASKS}, (1.0, 2.0)
                )
                weighting.backward(*network(), same)
                optimizer.step()
                optimizer.zero_grad()
                weighting.end_epoch({task: math.exp(-epoch) + index for index, task in enumerate(TASKS)})
                seen.append((weighting.factors(), network.point.grad.tolist()))
            return seen

        weights = {"depth": 0.7}
        whole = go(build(name, **weights), 0, 6)
        before, after = build(name, **weights), build(name, **weights)
        go(before, 0, 3)
        after.load_state_dict({key: value.clone() for key, value in before.state_dict().items()})
        assert after.factors() == before.factors() == whole[2][0]
        assert go(after, 3, 6) == whole[3:]


def test_unknown_name():
    with pytest.raises(ValueError, match=r"task_weighting is 'upgrade'; allowed: fixed, .* mean 'upgrad'\?"):
        build_weighting("upgrade", TASKS, {})


# ---------------------------------------------------------------------------------------------- fixed


def test_fixed_is_the_weighted_sum():
    weighting = build("fixed", depth=0.5, segmentation=3.0)
    losses = {"segmentation": torch.tensor(2.0), "depth": torch.tensor(5.0), "normals": torch.tensor(7.0)}
    assert weighting.total(losses).item() == 3 * 2 + 0.5 * 5 + 7
    assert weighting.total(only(losses, "segmentation", "depth")).item() == 3 * 2 + 0.5 * 5
    assert not weighting.state_dict()


# ---------------------------------------------------------------------------------------------- uncertainty


def test_uncertainty_gradients_by_hand():
    # w (exp(-s) L + s / 2) by L: w exp(-s); by s: w (1/2 - exp(-s) L)
    weighting = build("uncertainty", ("depth",), depth=3.0)
    nn.init.constant_(weighting.log_variance["depth"], math.log(4))
    loss = torch.tensor(6.0, requires_grad=True)
    assert weighting.total({"depth": loss}).item() == pytest.approx(3 * (6 / 4 + math.log(4) / 2))
    weighting.backward({"depth": loss}, None, same)
    assert loss.grad.item() == pytest.approx(3 / 4)
    assert weighting.log_variance["depth"].grad.item() == pytest.approx(3 * (1 / 2 - 6 / 4))


def test_uncertainty_of_a_step_that_is_split_over_batches():
    # A quarter of the labels in one batch, the rest in another: together as if all were in one.
    gradients = []
    for parts in ([1.0], [0.25, 0.75]):
        weighting = build("uncertainty", ("depth",), depth=3.0)
        loss = torch.tensor(6.0, requires_grad=True)
        for part in parts:
            weighting.backward({"depth": part * loss}, None, same, {"depth": part})
        gradients.append((loss.grad.item(), weighting.log_variance["depth"].grad.item()))
    assert gradients[0] == gradients[1] == (3, 3 * (1 / 2 - 6))


def test_uncertainty_evens_out_losses_of_different_size():
    # Where the gradient by s is 0, exp(s) = 2 L; then each loss counts exp(-s) L = 1/2, whatever its size.
    weighting = build("uncertainty", ("depth", "segmentation"))
    losses = {"depth": torch.tensor(1.0), "segmentation": torch.tensor(100.0)}
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.1)
    for _ in range(600):
        optimizer.zero_grad()
        weighting.backward(losses, None, same)
        optimizer.step()
    for task, value in losses.items():
        assert weighting.log_variance[task].item() == pytest.approx(math.log(2 * value), abs=1e-3)
        assert weighting.factors()[task] * value.item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_uncertainty_of_an_absent_task_does_not_drift(optimizer):
    # Both optimizers hold momentum from the batches before, which moves whatever has a gradient, be it 0.
    weighting = build("uncertainty")
    settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    optimizer = optimizer(weighting.parameters(), lr=0.01, weight_decay=0.0, **settings)
    losses = {task: torch.tensor(3.0) for task in TASKS}
    for present in [TASKS] * 3 + [("depth", "normals")] * 3:
        before = {task: value.item() for task, value in weighting.log_variance.items()}
        weighting.backward(only(losses, *present), None, same)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        moved = {task for task, value in weighting.log_variance.items() if value.item() != before[task]}
        assert moved == set(present)


# ---------------------------------------------------------------------------------------------- dynamic average


def test_dynamic_average_by_hand():
    weighting = build("dwa", ("depth", "segmentation"), segmentation=10.0)
    epochs = [{"depth": 2.0, "segmentation": 5.0}, {"depth": 1.0, "segmentation": 4.5}, {"depth": 0.9}]
    weighting.end_epoch(epochs[0])
    assert weighting.factors() == pytest.approx({"depth": 1, "segmentation": 10})

    # Ratios 0.5 and 0.9: lambda = 2 exp(r / 2) / (exp(0.25) + exp(0.45)) = 2 * 1.28403 / 2.85234, 2 * 1.56831 / 2.85234
    weighting.end_epoch(epochs[1])
    assert weighting.factors() == pytest.approx({"depth": 0.900332, "segmentation": 10.99668}, rel=1e-5)
    losses = {"depth": torch.tensor(3.0), "segmentation": torch.tensor(2.0)}
    assert weighting.total(losses).item() == pytest.approx(0.900332 * 3 + 10.99668 * 2, rel=1e-5)

    # An epoch without labels for the segmentation: its ratio stays 0.9, that of the depth is 0.9 now.
    weighting.end_epoch(epochs[2])
    assert weighting.factors() == pytest.approx({"depth": 1, "segmentation": 10})

    # Back again, its ratio is against its last epoch with labels: 3.6 / 4.5 = 0.8; that of the depth is 1.
    weighting.end_epoch({"depth": 0.9, "segmentation": 3.6})
    share = 2 * math.exp(0.4) / (math.exp(0.4) + math.exp(0.5))
    assert weighting.factors() == pytest.approx({"depth": 2 - share, "segmentation": 10 * share})


def test_dynamic_average_of_a_task_whose_labels_come_late():
    # Until a task has two epochs its ratio is 1.
    weighting = build("dwa", ("depth", "segmentation"))
    for means in ({"depth": 4.0}, {"depth": 2.0}):
        weighting.end_epoch(means)
    share = 2 * math.exp(0.25) / (math.exp(0.25) + math.exp(0.5))
    assert weighting.factors() == pytest.approx({"depth": share, "segmentation": 2 - share})


def test_dynamic_average_survives_a_loss_of_zero():
    weighting = build("dwa", ("depth", "segmentation"))
    for depth in (0.0, 0.0, 1.0):
        weighting.end_epoch({"depth": depth, "segmentation": 1.0})
    assert weighting.factors() == pytest.approx({"depth": 1, "segmentation": 1})


# ---------------------------------------------------------------------------------------------- upgrad

# What does not lie in the cone {x: x . a >= 0, x . b >= 0} moves along the other gradient as far as its border:
# a -> a - (a . b / b . b) b and b -> b - (a . b / a . a) a. Here a . b = -2, a . a = 1, b . b = 5:
#     a + 0.4 b = (0.2, 0.4)     b + 2 a = (0, 1)     sum (0.2, 1.4) = 3 a + 1.4 b
# torchjd adds 1e-4 of a . a + b . b to a . a and b . b before it solves: hence the tolerances of 2e-3.
CONFLICT = {"depth": (1.0, 0.0), "segmentation": (-2.0, 1.0)}


def test_upgrad_of_a_conflict_by_hand():
    weighting, line = build("upgrad", tuple(CONFLICT)), Line(CONFLICT, (1.0, 7.0))
    weighting.backward(*line(), same)
    assert line.point.grad.tolist() == pytest.approx([0.2, 1.4], abs=2e-3)
    assert weighting.factors() == pytest.approx({"depth": 3, "segmentation": 1.4}, abs=2e-3)
    # The heads: h_t by its own L_t = h_t (x . g_t), with x . a = 1 and x . b = 5.
    assert line.heads["depth"].grad.item() == 1 and line.heads["segmentation"].grad.item() == 5


def test_upgrad_raises_no_loss_where_the_sum_does():
    def changes(name: str) -> dict[str, float]:
        weighting, line = build(name, tuple(CONFLICT)), Line(CONFLICT, (1.0, 7.0))
        losses, shared = line()
        weighting.backward(losses, shared, same)
        with torch.no_grad():
            line.point -= 1e-2 * line.point.grad  # the shared part alone
        return {task: (line()[0][task] - losses[task]).item() for task in losses}

    assert max(changes("upgrad").values()) < 0
    # a + b = (-1, 1) goes against a: a . (a + b) = -1
    assert changes("fixed")["depth"] > 0


def test_upgrad_with_weights():
    # A weight scales a gradient and its projection alike: 3 (0.2, 0.4) + 0.5 (0, 1).
    weighting, line = build("upgrad", tuple(CONFLICT), depth=3.0, segmentation=0.5), Line(CONFLICT, (1.0, 7.0))
    weighting.backward(*line(), same)
    assert line.point.grad.tolist() == pytest.approx([0.6, 1.7], abs=4e-3)
    assert line.heads["depth"].grad.item() == 3 and line.heads["segmentation"].grad.item() == 2.5


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_upgrad_resolves_small_conflicts_too(size):
    small = {task: tuple(size * value for value in gradient) for task, gradient in CONFLICT.items()}
    weighting, line = build("upgrad", tuple(small)), Line(small, (1.0, 7.0))
    weighting.backward(*line(), same)
    assert (line.point.grad / size).tolist() == pytest.approx([0.2, 1.4], abs=2e-3)


def test_upgrad_without_a_conflict_is_the_sum():
    weighting = build("upgrad", ("depth", "segmentation"), segmentation=2.0)
    line = Line({"depth": (1.0, 0.0), "segmentation": (2.0, 1.0)}, (1.0, 7.0))
    weighting.backward(*line(), same)
    assert line.point.grad.tolist() == pytest.approx([5, 2], abs=1e-5)
    assert weighting.factors() == pytest.approx({"depth": 1, "segmentation": 2}, abs=1e-5)


def test_upgrad_of_a_task_with_a_gradient_of_zero():
    weighting = build("upgrad", ("depth", "segmentation"))
    for other in ((2.0, 1.0), (0.0, 0.0)):
        line = Line({"depth": (0.0, 0.0), "segmentation": other}, (1.0, 7.0))
        weighting.backward(*line(), same)
        assert line.point.grad.tolist() == pytest.approx(list(other), abs=1e-5)


def test_upgrad_leaves_an_overflow_to_the_scaler():
    weighting, line = build("upgrad", tuple(CONFLICT)), Line(CONFLICT, (1.0, 7.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
    weighting.backward(*line(), scaler.scale)
    scaler.step(optimizer)
    scaler.update()
    assert line.point.tolist() == [1, 7] and scaler.get_scale() < 3e38
    assert weighting.factors() == {"depth": 1, "segmentation": 1}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_upgrad_in_a_network(device, layout, precision):
    # Heads as with plain backward; what is shared as a sum of the tasks' own gradients, by the factors of the log.
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    weighting = build("upgrad").to(device)
    network = Tiny().to(device, memory_format=layout)
    images = torch.rand(2, 3, 16, 16, device=device).to(memory_format=layout)

    def forward() -> tuple[dict[str, Tensor], Tensor]:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            return network(images)

    own = {}
    for task in TASKS:
        forward()[0][task].backward()
        own[task] = gradients(network)
        network.zero_grad()
    losses, shared = forward()
    statistics = network.encoder[1].running_mean.clone()
    weighting.backward(losses, shared, same)
    assert torch.equal(network.encoder[1].running_mean, statistics)  # the passes back do not count as batches

    factors = weighting.factors()
    assert max(factors.values()) > 1.01, "this problem was meant to have a conflict"
    for name, parameter in network.named_parameters():
        # Fused optimizers go wrong without a word when the layouts differ.
        assert parameter.grad.stride() == parameter.stride() and parameter.grad.dtype == parameter.dtype
        if name.startswith("encoder."):
            expected = sum(factors[task] * own[task][name] for task in TASKS)
        else:
            expected = own[name.split(".")[1]][name]
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-5), name


def test_upgrad_of_a_network_compiled_as_a_whole():
    # Such a network is one node of the graph: heads and shared part have the same parameters, all gradients are 0.
    class Whole(torch.autograd.Function):
        @staticmethod
        def forward(context: object, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return weight.sum(), weight.sum(), weight.clone()

        @staticmethod
        def backward(context: object, *gradients: Tensor) -> Tensor:
            raise AssertionError("not reached")

    weighting = build("upgrad", ("depth", "segmentation"))
    depth, segmentation, shared = Whole.apply(torch.ones(3, requires_grad=True))
    with pytest.raises(ValueError, match="set --compile false"):
        weighting.backward({"depth": depth, "segmentation": segmentation}, shared, same)


@pytest.mark.parametrize("missing", ["torchjd", "quadprog"])
def test_upgrad_without_its_packages(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"pip install -r requirements/torchjd\.txt") as caught:
        build_weighting("upgrad", TASKS, {})
    assert "\n" not in str(caught.value)
