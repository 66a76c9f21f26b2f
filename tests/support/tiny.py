"""Tiny pair sets and runs, made here from photos that installed packages bring along."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
import yaml
from PIL import Image
from torch import Tensor

from lightning_modules import PairedGAN
from pocketgan.cli import main
from pocketgan.images import to_tensor
from pocketgan.losses import L1Loss, LeastSquaresLoss
from pocketgan.metrics import EditQuality
from pocketgan.networks import E2GANGenerator, GroupNorm, PatchDiscriminator
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter
from pocketgan.text import ConceptTokens

CONFIGS = Path(__file__).parents[2] / "configs"
TINY_CONFIGS = Path(__file__).parents[1] / "configs"
CONCEPTS: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda photo: -photo,
    "mirrored": lambda photo: photo.flip(2),
    "sepia": lambda photo: (photo.mean(0, keepdim=True) * torch.tensor([1.0, 0.8, 0.5])[:, None, None]).clamp(-1, 1),
}


def real_photos(count: int, size: int) -> list[Tensor]:
    """Crops (3, size, size) in [-1, 1] of scikit-learn's two photos."""
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photos = [Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]
    draw = random.Random(0)
    crops = []
    for index in range(count):
        photo = photos[index % 2]
        side = draw.randint(200, photo.height)
        left, top = draw.randint(0, photo.width - side), draw.randint(0, photo.height - side)
        box = (left, top, left + side, top + side)
        crops.append(to_tensor(photo.resize((size, size), Image.Resampling.LANCZOS, box)))
    return crops


def make_pair_set(
    root: Path, photos: int = 12, size: int = 32, concepts: tuple[str, ...] = ("inverted", "sepia")
) -> Path:
    """A pair set of analytic edits."""
    settings = {
        "teacher": {"name": "analytic"},
        "photos": {},
        "size": size,
        "image_format": "png",
        "seed": 0,
        "versions": {},
        "concepts": {name: {"prompt": f"make it {name}"} for name in concepts},
    }
    writer = PairSetWriter(root, settings)
    for index, photo in enumerate(real_photos(photos, size)):
        writer.write(
            EditedPhoto(f"photo-{index:03d}", name, f"make it {name}", photo, CONCEPTS[name](photo))
            for name in concepts
        )
    writer.close()
    return root


def fit_base(pairs: Path, run: Path, *arguments: str) -> Path:
    """Train the tiny base through the command line."""
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'base_gan' / 'e2gan.yaml'}",
            f"--data.root={pairs}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


def fit_adapter(pairs: Path, base: Path, run: Path, *arguments: str) -> Path:
    """Adapt the tiny base through the command line."""
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'lora_adaptation' / 'e2gan.yaml'}",
            f"--data.root={pairs}",
            f"--model.base={base}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


def fit_condensed(pairs: Path, base: Path, run: Path, *arguments: str) -> Path:
    """Condense and prune the tiny adapter through the command line."""
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'channel_condensation' / 'latency_budget.yaml'}",
            f"--data.root={pairs}",
            "--data.concepts=[sepia]",
            f"--model.base={base}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


def config_of(run: Path) -> dict[str, Any]:
    """A run's config.yaml."""
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return config


def tiny_paired_gan(recipe: type[PairedGAN], **arguments: Any) -> PairedGAN:
    """An untrained paired GAN of 32 px, the same each time but for what is given."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "generator": E2GANGenerator(8, 16, norm=GroupNorm()),
        "discriminator": PatchDiscriminator(8, 2),
        "text_encoder": ConceptTokens(16, 2),
        "adversarial_loss": LeastSquaresLoss(),
        "reconstruction_loss": L1Loss(),
        "quality": EditQuality(),
        "generator_optimizer": torch.optim.Adam,
        "discriminator_optimizer": torch.optim.Adam,
    }
    return recipe(**{**settings, **arguments})
