"""Patch Diffusion: training a diffusion model from scratch on crops that know where they are."""

from collections.abc import Mapping

import torch
from torch import Tensor


def coordinates(height: int, width: int, device: torch.device | str | None = None) -> Tensor:
    """Absolute coordinates of a whole picture.

    Returns:
        (2, H, W): horizontal, then vertical, i / (R - 1) · 2 - 1 in [-1, 1].
    """
    rows, columns = (torch.linspace(-1, 1, side, device=device) for side in (height, width))
    return torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)))


def with_coordinates(pictures: Tensor) -> Tensor:
    """Append the whole grid to pictures (B, C, H, W), as sampling needs it: (B, C + 2, H, W)."""
    count, _, height, width = pictures.shape
    grid = coordinates(height, width, pictures.device).to(pictures)
    return torch.cat((pictures, grid.expand(count, -1, -1, -1)), 1)


class PatchCrop:
    """Random crops of one size a step with their coordinates: Wang et al., NeurIPS 2023, arXiv 2304.12526.

    After training_loop.py and patch_loss.py of its code: at each step a size is drawn for the whole batch; smaller
    crops come in larger batches, and each crop has a place of its own. There the larger batch holds further images;
    here a datamodule's batch has one size, so its pictures are repeated and cut at other places, which is our
    deviation. Coordinates are those in the whole picture, never in the crop, and are not noised: append them after the
    noise was added, as ``with_coordinates`` does for whole pictures. Mirror before cropping.

    Args:
        shares: Probability of each crop by its divisor of the side; the paper has a half for whole pictures, 0.3 for
            halves and 0.2 for quarters in pixels, and leaves quarters out in latents.
        batch_factors: By the same divisors, how many crops are taken of a picture.

    Raises:
        ValueError: Shares do not add up to 1 or have no whole pictures, or a factor is missing or below 1.
    """

    def __init__(
        self, shares: Mapping[int, float] | None = None, batch_factors: Mapping[int, int] | None = None
    ) -> None:
        self.shares = dict(shares or {1: 0.5, 2: 0.3, 4: 0.2})
        self.batch_factors = dict(batch_factors or {divisor: divisor for divisor in self.shares})
        if abs(sum(self.shares.values()) - 1) > 1e-6 or min(self.shares.values()) < 0 or min(self.shares) < 1:
            raise ValueError(f"shares are {self.shares}; give probabilities by divisor (1, 2, 4) that add up to 1")
        if not self.shares.get(1):
            raise ValueError(f"shares are {self.shares}; whole pictures (1) must be among them, sampling makes such")
        wrong = [divisor for divisor in self.shares if self.batch_factors.get(divisor, 0) < 1]
        if wrong:
            raise ValueError(f"batch_factors lack {wrong}; give 1 or more for each divisor of shares")

    def __call__(self, pictures: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Cut a batch.

        Args:
            pictures: (B, C, S, S) pixels or latents.
            generator: On the CPU; torch's own random numbers if None.

        Returns:
            Crops (F · B, C, s, s), their coordinates (F · B, 2, s, s), and the place (F · B,) in the batch that each
            was cut from, for labels.

        Raises:
            ValueError: The side is not square or not divisible.
        """
        count, _, height, width = pictures.shape
        if height != width or any(height % divisor for divisor in self.shares):
            raise ValueError(f"pictures of {height}x{width} are no square that {list(self.shares)} divide")
        divisors = list(self.shares)
        drawn = torch.multinomial(torch.tensor(list(self.shares.values())), 1, generator=generator)
        divisor = divisors[int(drawn)]
        side, factor = height // divisor, self.batch_factors[divisor]
        places = torch.arange(count).repeat(factor)
        corners = torch.randint(height - side + 1, (len(places), 2), generator=generator)
        whole = with_coordinates(pictures)
        cut = torch.stack(
            [
                whole[place, :, top : top + side, left : left + side]
                for place, (top, left) in zip(places.tolist(), corners.tolist(), strict=True)
            ]
        )
        return cut[:, :-2], cut[:, -2:], places.to(pictures.device)
