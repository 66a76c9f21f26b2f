"""Losses against values worked by hand."""

import math

import pytest
import torch

from pocketgan.losses import AdversarialLoss, HingeLoss, L1Loss, LeastSquaresLoss, NonSaturatingLoss

HALF, ZERO = torch.full((2, 1, 3, 3), 0.5), torch.zeros(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("loss", "real", "fake", "generator", "discriminator"),
    [
        (LeastSquaresLoss(), HALF, HALF, 0.25, 0.25),
        (LeastSquaresLoss(), HALF + 0.5, ZERO, 1.0, 0.0),
        (NonSaturatingLoss(), ZERO, ZERO, math.log(2), 2 * math.log(2)),
        (NonSaturatingLoss(), ZERO + 100, ZERO - 100, 100.0, 0.0),
        (HingeLoss(), HALF, ZERO - 2, 2.0, 0.5),
        (HingeLoss(), ZERO, ZERO, 0.0, 2.0),
    ],
)
def test_adversarial_values(loss, real, fake, generator, discriminator):
    assert loss.generator(fake).item() == pytest.approx(generator, abs=1e-6)
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator, abs=1e-6)


@pytest.mark.parametrize("loss", AdversarialLoss.__subclasses__())
def test_players_pull_against_each_other(loss):
    fake = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss().generator(fake).backward()
    up = -fake.grad.sum()
    fake.grad = None
    loss().discriminator(torch.ones(1, 1, 2, 2) / 2, fake + 0.1).backward()
    assert up > 0 > -fake.grad.sum()


def test_l1():
    white, black = torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4)
    assert L1Loss()(white, black).item() == 2
    assert L1Loss()(white, white).item() == 0
