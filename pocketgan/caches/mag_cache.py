"""MagCache for transformers."""

from typing import Any

from diffusers import MagCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from typing_extensions import override

from pocketgan.caches.transformer_cache import TransformerCache


class MagCache(TransformerCache):
    """Skips steps while the residuals' known shrinking says that they change little (Ma et al., arXiv 2506.09045).

    Args:
        threshold: Largest error that may add up while steps are skipped.
        max_skips: Steps skipped in a row at most; 0 caches nothing and changes no bit.
        retention_ratio: Share of the steps, from the beginning, that are always whole.
        ratios: Of the residuals' magnitudes from step to step, measured on the model with diffusers'
            ``MagCacheConfig(calibrate=True)``; None for those of FLUX.1, which diffusers brings along.

    Raises:
        ValueError: A number is out of range.
    """

    works_on_flux2 = False

    def __init__(
        self,
        threshold: float = 0.06,
        max_skips: int = 3,
        retention_ratio: float = 0.2,
        ratios: list[float] | None = None,
    ) -> None:
        if threshold < 0 or max_skips < 0 or not 0 <= retention_ratio <= 1:
            raise ValueError(
                f"threshold, max_skips and retention_ratio are {threshold}, {max_skips} and {retention_ratio}; give "
                "at least 0, at least 0, and 0 to 1"
            )
        if ratios == []:
            raise ValueError("ratios is empty; leave it out for FLUX.1, or give one for each step")
        self.threshold, self.max_skips, self.retention_ratio = threshold, max_skips, retention_ratio
        self.ratios = ratios

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "ratios": "flux" if self.ratios is None else self.ratios}

    @override
    def enable(self, pipeline: Any, arguments: dict[str, Any]) -> None:
        name = type(pipeline).__name__
        if self.ratios is None and not name.startswith("Flux"):
            raise ValueError(
                f"the ratios at hand are those of FLUX.1, not of a {name}; measure them with "
                "diffusers' MagCacheConfig(calibrate=True) and give them as ratios"
            )
        super().enable(pipeline, arguments)

    @override
    def config(self, pipeline: Any, steps: int) -> MagCacheConfig:
        return MagCacheConfig(
            threshold=self.threshold,
            max_skip_steps=self.max_skips,
            retention_ratio=self.retention_ratio,
            num_inference_steps=steps,
            mag_ratios=FLUX_MAG_RATIOS if self.ratios is None else self.ratios,
        )
