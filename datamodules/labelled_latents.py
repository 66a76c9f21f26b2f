"""Latents of images in class folders, encoded once."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.array_files import allocate, built_once, mapped
from datamodules.image_folder import ClassFolders, ImageFolderData, content_of, deal, square_picture
from pocketgan.digest import weights_digest
from pocketgan.dit_pipeline import downscaling, load_autoencoder, scaled_latents
from pocketgan.images import to_tensor
from pocketgan.pair_files import Split

_ENCODED_AT_ONCE = 16


class LatentDataset(Dataset[dict[str, Tensor]]):
    """One split: ``mean`` (V, C, H, W), V = 2 with a mirrored view, ``deviation`` likewise of latents, ``label`` ()."""

    def __init__(self, tensors: dict[str, Tensor], places: list[int]) -> None:
        self.tensors, self.places = tensors, places

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image."""
        return {name: values[self.places[index]] for name, values in self.tensors.items()}


class LabelledLatents(ImageFolderData):
    """Images in folders named after their classes, as latents of a pipeline's autoencoder, or as they are.

    The first use encodes each image's centred square, and its mirror image, into files that are keyed by the images,
    the size and the autoencoder's weights. They hold mean and deviation of the latent, so that each step draws a
    latent of its own, as DiT's training does (facebookresearch/DiT, train.py). They are mapped into memory, never read
    whole.

    Batches: ``latents`` (B, C, H, W), scaled as the transformer expects them, and ``label`` (B,), the place of the
    class in the sorted names. Without an autoencoder the latents are the images in [-1, 1]. Validation and test take
    the unmirrored mean.

    Args:
        root: ``ROOT/CLASS/image``; folders below a class belong to it.
        vae: Folder or repo id of a pipeline or an autoencoder of diffusers; None for images as they are.
        size: Side of the images in pixels.
        flip: Mirror half of the training images.
        batch_size: Images in a batch over all ranks together.
        split: Fractions of each class for train, val and test.
        seed: Deals the split, the order, mirror images and the draw of latents.
        cache: Folder of the encoded files; ``ROOT/.cache`` if None.

    Attributes:
        classes: Names by label, after ``setup``.
        latent_shape: (C, H, W), after ``setup``.

    Raises:
        ValueError: A number makes no sense.
    """

    def __init__(
        self,
        root: Path,
        vae: str | None = None,
        size: int = 256,
        flip: bool = True,
        batch_size: int = 32,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        cache: Path | None = None,
    ) -> None:
        super().__init__(root, size, flip, batch_size, split, seed, cache)
        self.vae = vae
        self.latent_shape = (0, 0, 0)
        self.datasets: dict[Split, LatentDataset] = {}

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Find the images; open their latents or encode them.

        Raises:
            FileNotFoundError: There is no such folder, a class has no image, or the autoencoder cannot be reached.
            ValueError: An image is too small or unreadable, or the size does not fit the autoencoder.
        """
        if self.datasets:
            return
        images = ClassFolders(self.root)
        autoencoder = load_autoencoder(self.vae) if self.vae else None
        if autoencoder is not None:
            factor = downscaling(autoencoder)
            if self.size % factor:
                below = self.size // factor * factor
                raise ValueError(
                    f"size {self.size} is not divisible by {factor}, the autoencoder's factor; use "
                    f"{f'{below} or ' if below else ''}{below + factor}"
                )
        tensors = self._encoded(images, autoencoder)
        self.classes = images.classes
        self.latent_shape = tuple(tensors["mean"].shape[2:])  # type: ignore[assignment]
        tensors["label"] = torch.tensor(images.targets)
        dealt = deal(images.targets, self.fractions, self.seed)
        self.datasets = {split: LatentDataset(tensors, places) for split, places in dealt.items()}

    def _encoded(self, images: ClassFolders, autoencoder: AutoencoderKL | None) -> dict[str, Tensor]:
        """``mean`` and, of latents, ``deviation`` (N, V, C, H, W), mapped from disk."""
        paths = [Path(path) for path, _ in images.samples]
        about = {
            "files": content_of(paths, self.root),
            "size": self.size,
            "flip": self.flip,
            "autoencoder": weights_digest(autoencoder) if autoencoder is not None else None,
        }
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        folder = built_once(
            self.cache, f"latents-{digest[:16]}", lambda building: self._encode(paths, autoencoder, building)
        )
        return {file.stem: mapped(file) for file in folder.glob("*.npy")}

    @torch.no_grad()
    def _encode(self, paths: list[Path], autoencoder: AutoencoderKL | None, folder: Path) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        starts = range(0, len(paths), _ENCODED_AT_ONCE)
        arrays: dict[str, Any] = {}
        for start in track(starts, "encoding images", disable=len(starts) < 2):
            files = paths[start : start + _ENCODED_AT_ONCE]
            pictures = torch.stack([to_tensor(square_picture(file, self.size)) for file in files])
            views = [pictures, pictures.flip(3)] if self.flip else [pictures]
            for number, view in enumerate(views):
                found = {"mean": view}
                if autoencoder is not None:
                    latent = autoencoder.to(device).encode(view.to(device)).latent_dist
                    found["mean"] = scaled_latents(latent.mean, autoencoder).cpu()
                    found["deviation"] = latent.std.cpu() * autoencoder.config.scaling_factor
                for name, values in found.items():
                    if name not in arrays:
                        shape = (len(paths), len(views), *values.shape[1:])
                        arrays[name] = allocate(folder / f"{name}.npy", shape, np.float32)
                    arrays[name][start : start + len(values), number] = values.numpy()
        for array in arrays.values():
            array.flush()

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches; the order depends on seed and images seen alone.

        Raises:
            ValueError: The batch does not divide over the ranks, or is larger than the training split.
        """
        dataset = self.datasets["train"]
        self.check_batch(len(dataset), "images", "images")
        return self.training_loader(dataset)

    def _evaluation_dataloader(self, split: Split) -> DataLoader[dict[str, Tensor]]:
        _, ranks = self.rank_and_ranks
        dataset = self.datasets[split]
        if len(dataset) < ranks:
            raise ValueError(
                f"the {split} split has {len(dataset)} images for {ranks} rank(s); each needs one: give it a larger "
                "fraction in data.split, or more images"
            )
        return self.evaluation_loader(dataset)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every validation image once, over all ranks together."""
        return self._evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Every test image once, over all ranks together."""
        return self._evaluation_dataloader("test")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Draw latents in training; elsewhere take the unmirrored mean."""
        mean, label = batch["mean"], batch["label"]
        if not (self.trainer and self.trainer.training):
            return {"latents": mean[:, 0], "label": label}
        rank, ranks = self.rank_and_ranks
        # for the whole batch, so that a run on other ranks sees the same
        generator = self.generator()
        views = torch.randint(mean.shape[1], (len(mean) * ranks,), generator=generator)[rank::ranks]
        rows = torch.arange(len(mean))
        latents = mean[rows, views]
        if "deviation" in batch:
            noise = torch.randn(len(mean) * ranks, *mean.shape[2:], generator=generator)[rank::ranks].to(mean.device)
            latents = latents + batch["deviation"][rows, views] * noise
        return {"latents": latents, "label": label}
