"""Learning rates over a run, counted in images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearDecay:
    """Full learning rate up to ``start_images``, then in a straight line to zero at ``end_images``, as in pix2pix.

    Args:
        start_images: Images seen when the decay begins.
        end_images: Images seen when the rate reaches zero; usually the image budget.

    Raises:
        ValueError: The decay ends before it starts.
    """

    start_images: int
    end_images: int

    def __post_init__(self) -> None:
        if not 0 <= self.start_images < self.end_images:
            raise ValueError(f"decay from {self.start_images} to {self.end_images} images; the end must come later")

    def __call__(self, images: int) -> float:
        """The factor on the learning rate after so many images, 1 to 0."""
        remaining = (self.end_images - images) / (self.end_images - self.start_images)
        return min(max(remaining, 0.0), 1.0)
