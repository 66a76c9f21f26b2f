"""How sparse a network is to be after so many images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CubicSparsity:
    """FedSparsify's schedule (arXiv 2204.12430), which is Zhu and Gupta's (arXiv 1710.01878, equation 1).

    s = final + (initial - final) · (1 - (t - start) / (end - start))³, where t is held at the last multiple of
    ``every_images`` after the start. Each value is a share of the whole: nothing is taken "of the rest".

    Deviations: FedSparsify counts federation rounds, here t is images. From ``end_images`` on the share is the final
    one, even if the end is no multiple of ``every_images`` after the start; theirs stays at the last multiple.

    Args:
        initial: Share of the weights that is zero from ``start_images`` on; equal to ``final`` it prunes at once.
        final: Share that is zero from ``end_images`` on.
        start_images: Images before the first pruning.
        end_images: Images at which the final share is reached.
        every_images: Images between two prunings.

    Raises:
        ValueError: A share is outside [0, 1) or falls, the end is not after the start, or the step is below 1 image.
    """

    initial: float
    final: float
    start_images: int
    end_images: int
    every_images: int

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(
                f"sparsity from {self.initial} to {self.final}; give shares of zeros from 0 to below 1 that do not "
                "fall, such as 0.0 and 0.9"
            )
        if not 0 <= self.start_images < self.end_images:
            raise ValueError(
                f"sparsity grows from {self.start_images} to {self.end_images} images; the end must come after the "
                "start, and the start not before 0"
            )
        if self.every_images < 1:
            raise ValueError(f"pruning every {self.every_images} images; give 1 or more")

    def __call__(self, images: int) -> float:
        """The share of zeros after so many images, 0 before the start."""
        if images < self.start_images:
            return 0.0
        if images >= self.end_images:
            return self.final
        held = (images - self.start_images) // self.every_images * self.every_images
        remaining = 1 - held / (self.end_images - self.start_images)
        return self.final + (self.initial - self.final) * remaining**3
