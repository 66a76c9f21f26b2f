"""Regularisation of generators and discriminators against values worked by hand."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from pocketgan.losses import (
    DiscriminatorRegularization,
    GeneratorRegularization,
    PathLengthRegularization,
    R1Regularization,
)
from pocketgan.networks import ImageDiscriminator, LatentGenerator
from pocketgan.networks.style_generator import StyleGenerator


class LinearDiscriminator(ImageDiscriminator):
    """D(x) = w · x, by the class."""

    size, image_channels, classes = 2, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 1, 1, 0], [2.0, 0, 0, 0]]))

    def forward(self, images, labels=None):
        return (images.flatten(1) * self.weight[labels]).sum(1, keepdim=True)


class LinearGenerator(StyleGenerator):
    """One pixel: 3 and 4 times the features of the first of two styles, which are 2 and 1 times the latents."""

    latent_size, size, image_channels, classes = 2, 1, 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.seen = []

    def map(self, latents, labels=None):
        self.seen.append((latents, labels))
        return torch.stack((latents * 2, latents), 1).requires_grad_()

    def synthesize(self, styles):
        return (styles[:, 0] * self.weight).sum(1).reshape(-1, 1, 1, 1)


class BareGenerator(LatentGenerator):
    latent_size, size, image_channels, classes = 2, 1, 1, 0

    def forward(self, latents, labels=None):
        return latents.sum(1).reshape(-1, 1, 1, 1)


@pytest.fixture
def directions_of_one(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)


@pytest.mark.parametrize(("label", "gamma", "expected"), [(0, 10.0, 15.0), (1, 10.0, 20.0), (0, 1.0, 1.5)])
def test_r1_of_a_linear_discriminator(label, gamma, expected):
    discriminator, images = LinearDiscriminator(), torch.randn(3, 1, 2, 2)
    loss = R1Regularization(gamma)(discriminator, images, torch.full((3,), label))
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    # γ / 2 · ‖w‖² has the derivative γ · w
    torch.testing.assert_close(discriminator.weight.grad[label], gamma * discriminator.weight[label].detach())
    assert images.grad is None
    assert not images.requires_grad


def test_path_length_of_a_linear_generator(directions_of_one):
    regularization, generator = PathLengthRegularization(), LinearGenerator()
    loss = regularization(generator, torch.randn(4, 2))
    length = 12.5**0.5  # squares sum to 25 for the first style and 0 for the second
    assert regularization.mean_length.item() == pytest.approx(0.01 * length)
    assert loss.item() == pytest.approx(2 * (0.99 * length) ** 2)
    assert loss.item() == pytest.approx(24.5025)
    loss.backward()
    # 2 · 0.99² · ‖w‖² / 2: the average's own part has a derivative too, as in NVlabs' code
    torch.testing.assert_close(generator.weight.grad, 2 * 0.99**2 * generator.weight.detach())
    assert not regularization.mean_length.requires_grad


def test_path_lengths_average_settles(directions_of_one):
    regularization, generator = PathLengthRegularization(decay=0.5), LinearGenerator()
    losses = [regularization(generator, torch.randn(2, 2)).item() for _ in range(12)]
    assert all(later == pytest.approx(earlier / 4, rel=1e-3) for earlier, later in pairwise(losses))
    assert list(regularization.state_dict()) == ["mean_length"]


@pytest.mark.parametrize(("batch", "shrink", "used"), [(8, 2, 4), (8, 1, 8), (3, 2, 1), (1, 2, 1)])
def test_path_length_uses_a_part_of_the_batch(batch, shrink, used):
    generator, latents, labels = LinearGenerator(), torch.randn(batch, 2), torch.arange(batch)
    PathLengthRegularization(batch_shrink=shrink)(generator, latents, labels)
    ((seen_latents, seen_labels),) = generator.seen
    assert torch.equal(seen_latents, latents[:used])
    assert torch.equal(seen_labels, labels[:used])


def test_directions_are_scaled_by_the_number_of_pixels():
    class Wide(LinearGenerator):
        def synthesize(self, styles):
            return super().synthesize(styles).expand(-1, 1, 50, 50)

    torch.manual_seed(0)
    regularization = PathLengthRegularization(decay=1.0, batch_shrink=1)
    regularization(Wide(), torch.randn(1, 2))
    torch.manual_seed(0)
    torch.randn(1, 2)
    total = torch.randn_like(torch.empty(1, 1, 50, 50)).sum() / 50
    assert regularization.mean_length.item() == pytest.approx(abs(total.item()) * 12.5**0.5, rel=1e-4)


def test_path_length_needs_styles():
    regularization = PathLengthRegularization()
    regularization.check_generator(LinearGenerator())
    for refuse in (regularization.check_generator, lambda bare: regularization(bare, torch.randn(2, 2))):
        with pytest.raises(TypeError, match="BareGenerator has no styles"):
            refuse(BareGenerator())


def shipped(base):
    """Those of the package: tests bring some of their own."""
    return [cls for cls in base.__subclasses__() if cls.__module__.startswith("pocketgan.")]


@pytest.mark.parametrize("cls", [*shipped(GeneratorRegularization), *shipped(DiscriminatorRegularization)])
def test_every_regularization_says_its_interval(cls):
    assert cls().interval >= 1
    assert cls(interval=7).interval == 7
    with pytest.raises(ValueError, match="interval 0"):
        cls(interval=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: R1Regularization(gamma=0), "gamma 0"),
        (lambda: PathLengthRegularization(weight=0), "weight 0"),
        (lambda: PathLengthRegularization(decay=1.5), "decay 1.5"),
        (lambda: PathLengthRegularization(batch_shrink=0), "batch_shrink 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
