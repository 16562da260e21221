"""Task weightings: how the losses of the tasks become one update.

A batch has losses for those tasks for which it has labels. An absent task changes neither the update nor its own
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from user_input.values import near

Losses = Mapping[str, Tensor]  # {task: scalar}
Maps = Tensor | Sequence[Tensor] | None  # (B, C, h, w) each: what the heads read
Scale = Callable[[Tensor], Tensor]  # of a loss before it is differentiated: the gradient scaler
Portions = Mapping[str, float] | None  # {task: fraction of the step's labeled frames in this micro-batch}


class Weighting(nn.Module):
    """The sum of w_t L_t, with the given weights w_t; a task without one weighs 1.

    Base class of the others. Their `parameters()` belong into the optimizer, without weight decay; `state_dict()` is
    their part of a checkpoint.
    """

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.weights = {task: weights.get(task, 1.0) for task in tasks}

    def backward(self, losses: Losses, shared: Maps, scale: Scale, portions: Portions = None) -> None:
        """Adds the gradients of `losses`, possibly none, to those that the parameters hold.

        The `portions` of a step's micro-batches sum to 1, and so do their `losses` to the step's. None: this batch is
        the whole step.
        """
        if losses:
            scale(self.total(losses, portions)).backward()

    def total(self, losses: Losses, portions: Portions = None) -> Tensor:
        """The weighted sum of one or more losses, a scalar."""
        multipliers = self.multipliers()
        return sum(multipliers[task] * value for task, value in losses.items())

    def multipliers(self) -> Mapping[str, float | Tensor]:
        """{task: factor on its loss}, on the device, without waiting for it."""
        return self.weights

    @torch.no_grad()
    def factors(self) -> dict[str, float]:
        """`multipliers` as numbers, for the log."""
        return {task: float(value) for task, value in self.multipliers().items()}

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """Receives the mean loss of each task that had labels in the epoch."""


class Uncertainty(Weighting):
    """The sum of w_t (exp(-s_t) L_t + s_t / 2), with a learned log variance s_t for each task, 0 at first.

    Kendall, Gal, Cipolla, arXiv 1705.07115, section 3.2, where a regression has exp(-s) L / 2 + s / 2 and a
    classification exp(-s) L + s / 2. The two differ by a shift of s by ln 2: where the derivative by s is 0, both
    multiply L with 1 / 2L. So the second serves all tasks, and s_t goes to ln 2 L_t.
    """

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__(tasks, weights)
        # One parameter each and not a vector: in a vector, the optimizer's momentum moves absent tasks along.
        self.log_variance = nn.ParameterDict({task: nn.Parameter(torch.zeros(())) for task in tasks})

    def multipliers(self) -> Mapping[str, float | Tensor]:
        return {task: weight * torch.exp(-self.log_variance[task]) for task, weight in self.weights.items()}

    def total(self, losses: Losses, portions: Portions = None) -> Tensor:
        # s_t / 2 belongs to the whole step: in each of n batches it would weigh n times as much against L_t.
        portions = portions or dict.fromkeys(losses, 1.0)
        penalties = [portions[task] * self.weights[task] * self.log_variance[task] / 2 for task in losses]
        return super().total(losses) + sum(penalties)


class DynamicAverage(Weighting):
    """The sum of w_t lambda_t L_t: a task whose loss falls slowly gets more weight. Dynamic weight average.

    Liu, Johns, Davison, arXiv 1803.10704, equation 7: lambda_t = K exp(r_t / T) / sum_i exp(r_i / T) for K tasks,
    with T = 2 and r_t the task's mean loss of the last epoch over that of the epoch before. An epoch without labels
    for a task does not count for it; before its second one, r_t is 1.
    """

    TEMPERATURE = 2.0  # of the paper

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__(tasks, weights)
        self.register_buffer("means", torch.full((len(tasks), 2), torch.nan))  # the epoch before, the last one

    def multipliers(self) -> Mapping[str, float | Tensor]:
        before, last = self.means.unbind(dim=1)
        # A comparison with NaN is false; a loss that was exactly 0 has no ratio either.
        ratios = torch.where((before > 0) & (last >= 0), last / before, 1.0)
        shares = len(self.tasks) * torch.softmax(ratios / self.TEMPERATURE, dim=0)
        return {task: self.weights[task] * share for task, share in zip(self.tasks, shares, strict=True)}

    def end_epoch(self, means: Mapping[str, float]) -> None:
        for history, task in zip(self.means, self.tasks, strict=True):
            if task in means:
                history.copy_(torch.stack([history[1], history.new_tensor(means[task])]))


class UPGrad(Weighting):
    """Heads get the gradient of their w_t L_t; what they share gets an update that conflicts with no task.

    Quinton and Rey, arXiv 2406.16232: the gradient g_t of each w_t L_t by the shared parameters is projected onto
    the dual cone {x: x . g_i >= 0 for every task i} (equation 3), where no loss rises to first order, and the
    projections are added up. The paper takes their mean; with the sum, tasks without a conflict get just the update
    of `fixed`, and its learning rates stay right.

    Only the tasks of one batch are kept from conflicting: accumulated batches are added as they come. A batch costs
    a pass back through the shared part and a copy of its gradients for each task, and waits for the device.
    """

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__(tasks, weights)
        try:
            from torchjd import aggregation, autojac
            from torchjd.linalg import QuadprogProjector

            # Below norm_eps the squared gradients count as 0 and are not projected. torchjd's 1e-4 is a norm of 0.01.
            self.solver = QuadprogProjector(norm_eps=1e-30)
        except ImportError:
            raise ValueError(
                "task_weighting: upgrad needs torchjd and quadprog; install them with: "
                "pip install -r requirements/torchjd.txt"
            ) from None
        self.aggregator = aggregation.UPGrad
        self.mtl_backward, self.jac_to_grad = autojac.mtl_backward, autojac.jac_to_grad
        # What each g_t was multiplied with in the sum of the projections, in the task's last batch.
        self.register_buffer("shares", torch.ones(len(tasks)))

    def backward(self, losses: Losses, shared: Maps, scale: Scale, portions: Portions = None) -> None:
        present = [self.tasks.index(task) for task in losses]
        if len(losses) < 2:
            super().backward(losses, shared, scale, portions)
            self.shares[present] = 1.0
            return
        assert shared is not None, "upgrad needs the maps that heads read"
        maps = [shared] if isinstance(shared, Tensor) else list(shared)
        scaled = [scale(self.weights[task] * value) for task, value in losses.items()]
        parameters, shared_parameters = leaves(scaled), leaves(maps)
        if len(parameters) == len(shared_parameters):
            raise ValueError(
                "task_weighting: upgrad finds no heads behind what they share, as in a network that was compiled "
                "as a whole; set --compile false"
            )
        # One task after the other (1): the other way is torch.vmap, which not every layer supports.
        self.mtl_backward(scaled, maps, shared_params=shared_parameters, parallel_chunk_size=1)
        aggregator = self.aggregator(torch.ones(len(scaled), device=maps[0].device), self.project)
        shares = self.jac_to_grad(shared_parameters, aggregator, optimize_gramian_computation=True)
        self.shares[present] = shares.to(self.shares)
        # torchjd leaves gradients in any memory layout, and a fused optimizer pairs up elements as they lie there.
        for parameter in parameters:
            if parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(parameter.grad)

    def project(self, factors: Tensor, products: Tensor) -> Tensor:
        """Each row of `factors` (K, K) over the gradients -> factors of its projection; `products` (K, K) g_i . g_j.

        Gradients that overflowed in fp16 stay as they are, for the scaler to find in the sum: the solver's answer to
        NaN is NaN at best.
        """
        return self.solver(factors, products) if products.isfinite().all() else factors

    def factors(self) -> dict[str, float]:
        """Those of the shared part; a head's is the weight alone."""
        return {task: self.weights[task] * share for task, share in zip(self.tasks, self.shares.tolist(), strict=True)}


def leaves(roots: Iterable[Tensor]) -> list[Tensor]:
    """The parameters from which `roots` were computed."""
    nodes = [root.grad_fn for root in roots]
    seen, found = set(nodes), []
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return found


WEIGHTINGS: dict[str, type[Weighting]] = {
    "fixed": Weighting, "uncertainty": Uncertainty, "dwa": DynamicAverage, "upgrad": UPGrad,
}  # fmt: skip


def build_weighting(name: str, tasks: Sequence[str], weights: Mapping[str, float]) -> Weighting:
    """The weighting called `name`. Raises ValueError for an unknown name."""
    if name not in WEIGHTINGS:
        hint = f"allowed: {', '.join(WEIGHTINGS)}{near(name, WEIGHTINGS)}"
        raise ValueError(f"task_weighting is {name!r}; {hint}")
    return WEIGHTINGS[name](tasks, weights)
