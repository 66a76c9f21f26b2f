"""FasterCache for transformers."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from diffusers import FasterCacheConfig
from typing_extensions import override

from pocketgan.caches.transformer_cache import TransformerCache


class FasterCache(TransformerCache):
    """Extrapolates attention outputs of some steps from the two before (Lv et al., ICLR 2025, arXiv 2410.19355).

    Its other half, which approximates the pass without prompt, needs both passes in one batch, as video models make
    them; image editors do not, so it stays off.

    Args:
        interval: Each interval-th step computes its attention; 1 caches nothing and changes no bit.
        last_time: Steps above this time (of 1000, the beginning) are always whole, and so are the first two.
        weight: Of the difference between the two steps before.

    Raises:
        ValueError: A number is out of range.
    """

    keeps_passes_apart = False

    def __init__(self, interval: int = 2, last_time: int = 681, weight: float = 0.5) -> None:
        if interval < 1 or not 0 < last_time <= 1001:
            raise ValueError(f"interval is {interval} and last_time {last_time}; give at least 1, and 1 to 1001")
        self.interval, self.last_time, self.weight = interval, last_time, weight
        self._times: list[float] = []

    @override
    def config(self, pipeline: Any, steps: int) -> FasterCacheConfig:
        return FasterCacheConfig(
            spatial_attention_block_skip_range=self.interval,
            spatial_attention_timestep_skip_range=(-1, self.last_time),
            attention_weight_callback=lambda _: self.weight,
            is_guidance_distilled=True,
            current_timestep_callback=lambda: self._time(float(pipeline._current_timestep)),
        )

    def _time(self, time: float) -> float:
        """The step's time, but for a call's first two: they are never skipped, since the others extrapolate them."""
        if time not in self._times:
            self._times.append(time)
        return time if len(self._times) > 2 else inf

    @override
    @contextmanager
    def of_one_call(self) -> Iterator[None]:
        self._times = []
        with super().of_one_call():
            yield
