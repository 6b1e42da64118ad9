"""The loss: torch's values where torch has it, hand values where not, and a gradient that never dies."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mednca.losses import cross_entropy, dice_loss, whole_dice_loss


def test_one_class_is_binary_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 1, 6, 5, generator=generator, dtype=torch.float64)
    target = torch.rand(3, 1, 6, 5, generator=generator, dtype=torch.float64)  # shares, not only 0 and 1
    torch.testing.assert_close(
        cross_entropy(logits, target), F.binary_cross_entropy_with_logits(logits, target)
    )


def test_several_classes_are_cross_entropy_with_a_background_of_logit_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 2, 6, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (3, 6, 5), generator=generator)
    target = torch.stack([label == 1, label == 2], dim=1).double()
    expected = F.cross_entropy(torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1), label)
    torch.testing.assert_close(cross_entropy(logits, target), expected)


def test_dice_has_its_hand_value() -> None:
    # Probability 1/2 everywhere on 2 images of 2 cells: overlap 1.5, sums 2 and 3; pooled over the batch.
    target = torch.tensor([[[[1.0, 1.0]]], [[[1.0, 0.0]]]])
    expected = 1 - (2 * 1.5 + 1) / (2 + 3 + 1)
    torch.testing.assert_close(dice_loss(torch.zeros(2, 1, 1, 2), target), torch.tensor(expected))
    # Two classes: probabilities 1/3 each; the first class is present, the second is not.
    target = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]])
    one, two = 1 - (2 * 2 / 3 + 1) / (2 / 3 + 2 + 1), 1 - 1 / (2 / 3 + 1)
    torch.testing.assert_close(dice_loss(torch.zeros(1, 2, 1, 2), target), torch.tensor((one + two) / 2))


def test_dice_is_zero_for_the_right_answer_even_an_empty_one() -> None:
    target = (torch.arange(16).reshape(1, 1, 4, 4) % 3 == 0).float()
    assert dice_loss(200 * target - 100, target) < 1e-6
    assert dice_loss(torch.full((1, 1, 4, 4), -100.0), torch.zeros(1, 1, 4, 4)) < 1e-6


def test_the_gradient_survives_saturated_logits() -> None:
    for classes in (1, 2):
        for sign in (-40.0, 40.0):
            logits = torch.full((1, classes, 2, 2), sign, requires_grad=True)
            target = torch.zeros(1, classes, 2, 2)
            target[:, 0] = float(sign < 0)  # wrong everywhere
            cross_entropy(logits, target).backward()
            assert logits.grad is not None and torch.isfinite(logits.grad).all()
            assert logits.grad[:, 0].abs().min() > 0.1 / classes


def test_the_whole_foreground_has_the_dice_of_its_classes_together() -> None:
    # Probabilities 1/3 each: 2/3 for the foreground; targets of different classes in the two cells.
    target = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    expected = 1 - (2 * 4 / 3 + 1) / (4 / 3 + 2 + 1)
    torch.testing.assert_close(whole_dice_loss(torch.zeros(1, 2, 1, 2), target), torch.tensor(expected))
    one = torch.rand(2, 1, 3, 3)
    torch.testing.assert_close(
        whole_dice_loss(one, target[:, :1, :, :1]), dice_loss(one, target[:, :1, :, :1])
    )
