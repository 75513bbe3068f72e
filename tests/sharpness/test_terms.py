# SPDX-License-Identifier: Apache-2.0
"""Is the loss the same at every batch size, however it counts its terms, and is it said where it cannot be?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_sam.sharpness import SharpnessAnalyzer
from tests.looped import looped

WEIGHTS = torch.tensor([1.0, 9.0, 3.0], dtype=torch.float64)
Batch = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(self.body(x).tanh())}


def examples(count: int = 9) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(4, generator=generator, dtype=torch.float64), "labels": i % 3} for i in range(count)]


def logits(model: nn.Module, batch: Batch) -> Tensor:
    return model(batch["x"])["logits"]


def focal(model: nn.Module, batch: Batch) -> Tensor:
    each = F.cross_entropy(logits(model, batch), batch["labels"], reduction="none")
    return ((1 - each.neg().exp()) ** 2 * each).mean()


def two_tasks(model: nn.Module, batch: Batch) -> Tensor:
    z = logits(model, batch)
    return F.cross_entropy(z, batch["labels"]) + 0.5 * F.mse_loss(z[:, 0], batch["x"][:, 0])


def ctc(model: nn.Module, batch: Batch) -> Tensor:
    z, rows = logits(model, batch), len(batch["x"])
    steps = z[None].repeat(4, 1, 1).log_softmax(2)
    ones = torch.ones(rows, dtype=torch.long)
    return F.ctc_loss(steps, batch["labels"].clamp(min=1)[:, None], 4 * ones, ones)


def divergence(model: nn.Module, batch: Batch) -> Tensor:
    even = torch.full((len(batch["x"]), 3), 1 / 3, dtype=torch.float64)
    return F.kl_div(logits(model, batch).log_softmax(1), even, reduction="batchmean")


def dice(model: nn.Module, batch: Batch) -> Tensor:
    p, y = logits(model, batch).softmax(1)[:, 1:], F.one_hot(batch["labels"], 3)[:, 1:]
    return 1 - 2 * (p * y).sum() / (p.sum() + y.sum() + 1)


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    z = logits(model, batch)
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


def weighted_by_hand(model: nn.Module, batch: Batch) -> Tensor:
    w = WEIGHTS[batch["labels"]]
    return (w * F.cross_entropy(logits(model, batch), batch["labels"], reduction="none")).sum() / w.sum().square()


GO_TOGETHER = {
    "weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "weights, smoothed": nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    "left out": nn.CrossEntropyLoss(ignore_index=1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "focal": focal,
    "two tasks": two_tasks,
    "ctc": ctc,
    "divergence": divergence,
}


def loss_and_gradient(loss: Any, size: int, **settings: Any) -> tuple[float, Tensor]:
    one = SharpnessAnalyzer(Net(), examples(), loss=loss, batch_size=size, dtype=torch.float64, **settings)
    return one.loss_function.gradient()


@looped
@pytest.mark.parametrize("loss", GO_TOGETHER)
def test_the_loss_is_the_same_at_every_batch_size(loss: str) -> None:
    expected, gradient = loss_and_gradient(GO_TOGETHER[loss], 9)
    for size in (1, 4):
        found, its_gradient = loss_and_gradient(GO_TOGETHER[loss], size)
        assert found == pytest.approx(expected, rel=1e-10)
        assert (its_gradient - gradient).norm() <= 1e-10 * gradient.norm()


@looped
@pytest.mark.parametrize("loss", [dice, contrastive, weighted_by_hand])
def test_a_loss_that_is_no_mean_is_refused_but_in_one_batch_or_by_batches(loss: Any) -> None:
    for size in (1, 4):
        with pytest.raises(ValueError, match=r"batch_size=...\)` >= 9 for one batch.*unit='batch'"):
            loss_and_gradient(loss, size)
    model = Net()
    whole = {"x": torch.stack([e["x"] for e in examples()]), "labels": torch.tensor([e["labels"] for e in examples()])}
    assert loss_and_gradient(loss, 9)[0] == pytest.approx(loss(model, whole).item(), rel=1e-12)
    parts = [loss(model, {k: v[i : i + 4] for k, v in whole.items()}).item() * n for i, n in ((0, 4), (4, 4), (8, 1))]
    assert loss_and_gradient(loss, 4, unit="batch")[0] == pytest.approx(sum(parts) / 9, rel=1e-12)


def test_a_wrong_number_of_terms_is_found_out() -> None:
    criterion = nn.CrossEntropyLoss(weight=WEIGHTS)
    with pytest.raises(ValueError, match="no mean over terms"):
        loss_and_gradient(lambda m, b: (criterion(logits(m, b), b["labels"]), len(b["labels"])), 4)


def test_how_terms_are_counted_is_in_the_result() -> None:
    one = SharpnessAnalyzer(Net(), examples(), loss=nn.CrossEntropyLoss(weight=WEIGHTS), batch_size=2)
    assert one.sam_sharpness().settings["terms"] == "weights of the targets of cross_entropy 1"
    by_batch = SharpnessAnalyzer(Net(), examples(), loss=dice, batch_size=2, unit="batch")
    assert by_batch.sam_sharpness().settings["terms"] == "rows of each batch"


def test_pixels_that_the_config_leaves_out_do_not_count() -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(
        SegformerConfig(num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[4], patch_sizes=[3], strides=[2],
                        num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=4, num_labels=3)
    )  # fmt: skip
    rows = []
    for i in range(4):
        labels = torch.randint(0, 3, (8, 8))
        labels[1 + 2 * i :] = 255
        rows.append({"pixel_values": torch.randn(3, 8, 8), "labels": labels})
    found = [SharpnessAnalyzer(model, rows, batch_size=size, dtype="float64").loss() for size in (4, 1)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_unit_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unit=...\)` must be one of terms, batch, got 'token'"):
        SharpnessAnalyzer(Net(), examples(), unit="token")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


class Fused(Once):
    """A kernel that computes its gradient in the forward pass, which autograd takes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 2 * x.detach()
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.slope


class Twice(Once):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


def test_custom_functions_that_can_be_differentiated_twice_are_measured() -> None:
    values = [
        SharpnessAnalyzer(Net(), examples(), loss=loss, dtype="float64", batch_size=4).top_eigenvalues().values[0]
        for loss in (lambda m, b: Twice.apply(logits(m, b)).mean(), lambda m, b: logits(m, b).square().mean())
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def ctc(scores: Any) -> Any:
    """Return a loss of torch's own that none of its versions can differentiate twice."""
    ones = torch.ones(len(scores), dtype=torch.long)
    return torch.nn.functional.ctc_loss(scores.log_softmax(-1)[None], ones[:, None], ones, ones)


@looped
@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: ctc(logits(m, b)),
        lambda m, b: Once.apply(logits(m, b)).mean(),
        lambda m, b: Fused.apply(logits(m, b)).mean(),
    ],
)
def test_a_loss_without_a_second_derivative_ends_in_one_line_with_the_way_out(loss: Any) -> None:
    one = SharpnessAnalyzer(Net(), examples(), loss=loss)
    with pytest.raises(NotImplementedError, match=r"no second derivative.*sam_sharpness, worst_case") as found:
        one.top_eigenvalues()
    assert "\n" not in str(found.value)
    assert one.sam_sharpness().value > 0
