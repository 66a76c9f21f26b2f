"""The slot for networks that say how alike two pictures are."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from pocketgan.metrics import FrozenModule


class ImageEmbedding(nn.Module, ABC):
    """A frozen network whose cosine compares pictures.

    Attributes:
        score_name: What their cosine may be called in logs; ``clip_image_score`` with CLIP alone.
    """

    score_name: str

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            images: (B, 3, H, W) in [-1, 1].

        Returns:
            (B, D) float32.
        """


def load_clip(model: str) -> Any:
    """Load a ``CLIPModel`` of transformers, frozen.

    Args:
        model: Repo id or local folder.

    Raises:
        FileNotFoundError: The model is neither a local folder nor can it be reached.
    """
    from transformers import CLIPModel

    try:
        clip = CLIPModel.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"CLIP model {model!r} is no local folder and cannot be reached as a repo id from here; on a machine "
            "with access run `hf download REPO_ID --local-dir FOLDER`, copy FOLDER to this machine "
            "and give it as the model"
        ) from error
    return clip.requires_grad_(False).eval()


def clip_pixels(images: Tensor, side: int) -> Tensor:
    """Scale pictures as CLIP takes them, as tensors: bicubically with antialiasing, where its own code uses Pillow.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        side: S, of the square that the network sees.

    Returns:
        (B, 3, S, S), in standard deviations from CLIP's mean.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, normalize, resize
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    scaled = resize(images.float(), [side], InterpolationMode.BICUBIC, antialias=True)
    pictures = center_crop(scaled, [side, side])
    pixels: Tensor = normalize(pictures.clamp(-1, 1).add(1).div(2), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    return pixels


class CLIPImageEmbedding(FrozenModule, ImageEmbedding):
    """CLIP's image embedding by transformers; DVAR's code takes ViT-B/32.

    Pictures are scaled as tensors (``clip_pixels``), so they stay on their device.

    Args:
        model: Repo id, for example ``openai/clip-vit-base-patch32``, or a local folder saved by
            ``CLIPModel.save_pretrained``.

    Raises:
        FileNotFoundError: The model is neither a local folder nor can it be reached.
    """

    score_name = "clip_image_score"

    def __init__(self, model: str = "openai/clip-vit-base-patch32") -> None:
        super().__init__()
        clip = load_clip(model)
        self.vision, self.projection = clip.vision_model, clip.visual_projection

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed pictures; see ``ImageEmbedding.forward``."""
        pixels = clip_pixels(images, self.vision.config.image_size)
        embedded: Tensor = self.projection(self.vision(pixel_values=pixels).pooler_output)
        return embedded
