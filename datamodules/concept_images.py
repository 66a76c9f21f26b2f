"""A few photos of one concept, with prompts, for a text-to-image model to learn it from."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from datamodules.image_clock_data import ImageClockData
from pocketgan.files import sha256_of, write_whole
from pocketgan.images import centred_square, find_images, load_photo, to_tensor

# our own sentences, in the spirit of those of textual inversion: plain captions, so that the concept alone is learned
OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a picture of the {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a dark photo of a {}",
    "a clear photo of one {}",
    "a cropped picture of the {}",
    "a good picture of my {}",
    "a small picture of a {}",
    "a large photo of the {}",
    "a photo of a nice {}",
    "a photo of a clean {}",
)
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a dark painting in the style of {}",
    "a large picture in the style of {}",
    "a small painting in the style of {}",
)
REPEATS = 100  # a pass shows each photo so often, as in textual inversion's and DVAR's code


class _Places(Dataset[int]):
    """Numbers of photos; what is to be drawn for them is drawn for a whole batch."""

    def __init__(self, photos: int) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return self.photos * REPEATS

    def __getitem__(self, index: int) -> int:
        return index // REPEATS


class ConceptImages(ImageClockData):
    """Photos of one concept and, for prior preservation, pictures of its class.

    Photos become centred squares. The VAE sees each once: what is kept is the mean and the deviation of its posterior,
    in a safetensors file named by a hash of the photos, their size and the VAE, so that a training step still draws a
    posterior sample of its own. With ``rescale`` photos differ at each step and are encoded there.

    A batch is a dict: ``prompt`` (list of B) and either ``moments`` (B, 2C, h, w) or ``image`` (B, 3, S, S) in [-1, 1],
    in training with ``mask`` (B, 1, S, S) of 0 and 1, where ``image`` shows the photo; with class images also
    ``class_prompt`` (list of B) and ``class_moments`` (B, 2C, h, w). What is drawn depends on seed and images seen
    alone. In validation, and for loss tracking, nothing is drawn: photos are whole and templates come in turn.

    Args:
        root: Folder with the photos.
        phrase: What stands in a template's braces, for example ``<ring>`` or ``sks ring``; it holds the method's token.
        templates: ``object`` or ``style``, or sentences with ``{}`` of your own.
        size: Side of the pictures in pixels.
        batch_size: Photos of a batch over all ranks together; each comes with a class image where there are any.
        class_root: Folder with class images; one whose caption differs has a ``.txt`` file of its name beside it.
        class_prompt: Prompt of the other class images, for example ``a photo of a ring``.
        flip: Mirror half of the photos.
        rescale: Custom Diffusion's augmentation: of three photos two are scaled to between a third of the size and
            all of it and put anywhere on grey, one is scaled to between 1.2 and 1.4 times the size and cropped; the
            prompt says so. From diffusers' ``examples/custom_diffusion``.
        cache: Folder for the VAE's means and deviations; ``ROOT/.cache`` if None.
        seed: Seeds order and draws.

    Raises:
        ValueError: A number is out of range, a template has no braces, or class images come without a prompt.
    """

    def __init__(
        self,
        root: Path,
        phrase: str,
        templates: Literal["object", "style"] | list[str] = "object",
        size: int = 512,
        batch_size: int = 2,
        class_root: Path | None = None,
        class_prompt: str | None = None,
        flip: bool = True,
        rescale: bool = False,
        cache: Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if size < 8 or batch_size < 1:
            raise ValueError(f"size is {size}, batch_size {batch_size}; give 8 or more and 1 or more")
        if isinstance(templates, str):
            self.templates: Sequence[str] = OBJECT_TEMPLATES if templates == "object" else STYLE_TEMPLATES
        else:
            self.templates = templates
        without = [template for template in self.templates if "{}" not in template]
        if without or not self.templates:
            raise ValueError(f"template {without[0] if without else '(none)'!r} has no {{}} for the phrase; put one in")
        if class_root is not None and class_prompt is None:
            raise ValueError("class_root is given without class_prompt; say what its pictures show: a photo of a ring")
        self.root, self.phrase, self.class_root, self.class_prompt = root, phrase, class_root, class_prompt
        self.size, self.batch_size, self.flip, self.rescale, self.seed = size, batch_size, flip, rescale, seed
        self.cache = cache or root / ".cache"
        self.class_prompts: list[str] = []
        self._moments: dict[str, Tensor] = {}

    @property
    def prompts(self) -> list[str]:
        """The training prompts, one a template."""
        return [template.replace("{}", self.phrase) for template in self.templates]

    @override
    def setup(self, stage: str) -> None:
        """Read the pictures.

        Raises:
            FileNotFoundError: A folder does not exist.
            ValueError: A folder holds no pictures, or one is smaller than ``size``.
        """
        self._files = find_images(self.root)
        self.photos = self._read(self._files)
        if self.class_root is not None and self.class_prompt is not None:
            if not self.class_root.is_dir():
                raise FileNotFoundError(
                    f"{self.class_root} is no folder; give one with pictures of the class as data.class_root, or leave "
                    "it out with the method's prior_weight at 0"
                )
            self._class_files = find_images(self.class_root)
            captions = [file.with_suffix(".txt") for file in self._class_files]
            self.class_prompts = [
                file.read_text().strip() if file.is_file() else self.class_prompt for file in captions
            ]

    def _read(self, files: list[Path]) -> Tensor:
        """Centred squares (N, 3, S, S) in [-1, 1]."""
        return torch.stack([self._square(file) for file in files])

    def _square(self, file: Path) -> Tensor:
        picture = load_photo(file, minimum_side=1).image
        side = min(picture.size)
        if side < self.size:
            raise ValueError(
                f"{file} is {picture.width}x{picture.height}, below the {self.size} px that the model is trained at; "
                f"give larger pictures, or set data.size to {side} or less in the model's steps"
            )
        return to_tensor(centred_square(picture, self.size))

    def provide_moments(self, encode: Callable[[Tensor], Tensor], vae_sha256: str, device: torch.device) -> None:
        """Have the VAE see each picture once, or read what it saw before; batches are then made on the device.

        Args:
            encode: Means and log variances (1, 2C, h, w) of a picture (1, 3, S, S) in [-1, 1].
            vae_sha256: What tells the VAE.
            device: Where the model is.
        """
        self.photos = self.photos.to(device)
        if self._moments:
            return
        views: dict[str, Callable[[], Tensor]] = {}
        if not self.rescale:
            views["photo"] = lambda: self.photos
            if self.flip:
                views["mirrored"] = lambda: self.photos.flip(3)
        if self.class_prompts:
            views["class"] = lambda: self._read(self._class_files)
        if not views:
            return
        files = [*self._files, *(self._class_files if self.class_prompts else [])]
        recipe = [[sha256_of(file) for file in files], sorted(views), len(self._files), self.size, vae_sha256]
        key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
        file = self.cache / f"latents-{key}.safetensors"
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(self.cache / "lock"):  # a second process waits here, then finds the file whole
            if not file.is_file():
                # one by one: a kernel may differ with the size of the batch, and so the bits
                encoded = {
                    name: torch.cat([encode(picture).float().cpu() for picture in pictures().split(1)])
                    for name, pictures in views.items()
                }
                write_whole(file, save(encoded))
        self._moments = load_file(file, str(device))

    @override
    def train_dataloader(self) -> DataLoader[int]:
        """Shuffled batches; the order depends on seed and images seen alone.

        Raises:
            ValueError: The batch does not divide over the ranks, or is larger than a pass.
        """
        _, ranks = self.rank_and_ranks
        dataset = _Places(len(self.photos))
        if self.batch_size % ranks or self.batch_size > len(dataset):
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of {ranks} ranks and at most {len(dataset)}, "
                f"{REPEATS} times the photos"
            )
        return self.training_loader(dataset)

    @override
    def val_dataloader(self) -> DataLoader[int]:
        """Every photo once, over all ranks together.

        Raises:
            ValueError: There are fewer photos than ranks.
        """
        _, ranks = self.rank_and_ranks
        if len(self.photos) < ranks:
            raise ValueError(f"{len(self.photos)} photos for {ranks} ranks; each rank needs one, use fewer devices")
        return self.evaluation_loader(range(len(self.photos)))

    @override
    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> dict[str, Any]:
        """Make a batch of the photos' numbers (B,)."""
        if self.trainer and self.trainer.training:
            return self._drawn(batch)
        prompts = self.prompts
        made: dict[str, Any] = {"prompt": [prompts[place % len(prompts)] for place in range(len(batch))]}
        if self.rescale:
            return made | {"image": self.photos[batch]}
        return made | {"moments": self._moments["photo"][batch]}

    def _drawn(self, numbers: Tensor) -> dict[str, Any]:
        rank, ranks = self.rank_and_ranks
        generator = self.generator()
        # for the whole global batch, so that the number of ranks changes nothing
        draws = torch.rand(len(numbers) * ranks, 8, generator=generator)[rank::ranks]
        prompts = self.prompts
        captions = [prompts[int(draw * len(prompts))] for draw in draws[:, 0].tolist()]
        mirrored = ((draws[:, 1] < 0.5) & self.flip)[:, None, None, None].to(numbers.device)
        batch: dict[str, Any] = {}
        if self.rescale:
            photos = torch.where(mirrored, self.photos[numbers].flip(3), self.photos[numbers])
            placed = [self._rescaled(photo, draw) for photo, draw in zip(photos, draws[:, 3:].tolist(), strict=True)]
            captions = [word + caption for (_, _, word), caption in zip(placed, captions, strict=True)]
            batch["image"] = torch.stack([image for image, _, _ in placed])
            batch["mask"] = torch.stack([mask for _, mask, _ in placed])
        else:
            photo = self._moments["photo"][numbers]
            if self.flip:
                photo = torch.where(mirrored, self._moments["mirrored"][numbers], photo)
            batch["moments"] = photo
        batch["prompt"] = captions
        if self.class_prompts:
            chosen = [int(draw * len(self.class_prompts)) for draw in draws[:, 2].tolist()]
            batch["class_moments"] = self._moments["class"][chosen]
            batch["class_prompt"] = [self.class_prompts[number] for number in chosen]
        return batch

    def _rescaled(self, photo: Tensor, draws: list[float]) -> tuple[Tensor, Tensor, str]:
        """A photo (3, S, S) in another scale, its mask (1, S, S), and what the prompt begins with."""
        kind, scale, top, left, word = draws
        smallest, largest = (self.size // 3, self.size) if kind < 2 / 3 else (6 * self.size // 5, 7 * self.size // 5)
        side = smallest + int(scale * (largest - smallest + 1))
        scaled = interpolate(photo[None], (side, side), mode="bilinear", antialias=True)[0]
        mask = torch.ones(1, side, side, device=photo.device)
        room = abs(side - self.size)
        above, before = int(top * (room + 1)), int(left * (room + 1))
        if side > self.size:
            window = (slice(None), slice(above, above + self.size), slice(before, before + self.size))
            return scaled[window], mask[window], ("zoomed in ", "close up ")[int(2 * word)]
        around = (before, room - before, above, room - above)
        small = side < 0.6 * self.size
        return pad(scaled, around), pad(mask, around), ("a far away ", "very small ")[int(2 * word)] if small else ""
