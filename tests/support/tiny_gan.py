"""Tiny networks that make and judge images of 32 px, folders of images, and runs with them."""

from pathlib import Path

import torch
from lightning.pytorch import Trainer
from tiny import TINY_CONFIGS, real_photos
from torch import Tensor, nn

from datamodules import UnpairedImages
from pocketgan.cli import main
from pocketgan.images import to_image
from pocketgan.metrics import ImageSetQuality
from pocketgan.networks import ImageDiscriminator, LatentGenerator


class TinyLatentGenerator(LatentGenerator):
    """A linear layer and two convolutions, with batch norm for buffers that move and noise that is drawn in training.

    Args:
        size: Side of the images in pixels, a multiple of 8.
        classes: Number of classes; 0 for none.
        width: Channels.
        noise: Draw noise in training.
        norm: Have batch norm.
    """

    latent_size = 6
    image_channels = 3

    def __init__(self, size: int = 32, classes: int = 0, width: int = 4, noise: bool = True, norm: bool = True) -> None:
        super().__init__()
        self.size, self.classes, self.noise, self.width = size, classes, noise, width
        self.embedding = nn.Embedding(classes, width) if classes else None
        self.first = nn.Linear(self.latent_size, width * (size // 8) ** 2)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """See ``LatentGenerator.forward``."""
        features = self.first(latents).reshape(len(latents), self.width, self.size // 8, self.size // 8)
        if self.embedding is not None:
            features = features + self.embedding(labels)[..., None, None]
        features = self.second(self.norm(features)).relu().repeat_interleave(8, 2).repeat_interleave(8, 3)
        if self.noise and self.training:
            features = features + 0.1 * torch.randn_like(features)
        return self.last(features).tanh()


class TinyImageDiscriminator(ImageDiscriminator):
    """Two convolutions, the class by projection.

    Args:
        size: Side of the images in pixels.
        classes: Number of classes; 0 for none.
        width: Channels.
        image_channels: Channels of the images.
    """

    def __init__(self, size: int = 32, classes: int = 0, width: int = 4, image_channels: int = 3) -> None:
        super().__init__()
        self.size, self.classes, self.image_channels = size, classes, image_channels
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, width, 4, 4), nn.LeakyReLU(0.2), nn.Conv2d(width, width, 4, 4), nn.LeakyReLU(0.2)
        )
        self.embedding = nn.Embedding(classes, width) if classes else None
        self.last = nn.Linear(width, 1)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See ``ImageDiscriminator.forward``."""
        features = self.layers(images).mean((2, 3))
        logits = self.last(features)
        if self.embedding is not None:
            logits = logits + (self.embedding(labels) * features).sum(1, keepdim=True)
        return logits


def make_image_folder(
    root: Path, classes: tuple[str, ...] = ("china", "flower"), each: int = 12, size: int = 40
) -> Path:
    """Crops of photos in class folders, no squares."""
    for number, photo in enumerate(real_photos(len(classes) * each, size)):
        folder = root / classes[number % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        to_image(photo[:, : size - 4]).save(folder / f"{number:03d}.png")
    return root


def fit_unpaired(images: Path, run: Path, *arguments: str, config: str = "stylegan2_stage1") -> Path:
    """Train a tiny GAN on single images through the command line."""
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'dgl_compression' / f'{config}.yaml'}",
            f"--data.root={images}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


def tiny_unpaired_gan(recipe, **arguments):
    """An untrained GAN on single images of 32 px, the same each time but for what is given."""
    torch.manual_seed(0)
    settings = {
        "generator": TinyLatentGenerator(),
        "discriminator": TinyImageDiscriminator(),
        "quality": ImageSetQuality(),
        "generator_optimizer": lambda given: torch.optim.SGD(given, lr=0.1),
        "discriminator_optimizer": lambda given: torch.optim.SGD(given, lr=0.1),
    }
    return recipe(**{**settings, **arguments})


def train_unpaired(model, images, *callbacks, batches=1, **options):
    """Train on a folder of images for some batches, in this process and without a run folder."""
    data = UnpairedImages(images, **{"size": 32, "batch_size": 4, **options})
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=batches, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model, data)
    return model
