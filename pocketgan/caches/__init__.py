"""What spares a diffusion teacher part of its denoiser's work."""

from pocketgan.caches.deep_cache import DeepCache
from pocketgan.caches.denoiser_cache import DenoiserCache
from pocketgan.caches.faster_cache import FasterCache
from pocketgan.caches.first_block_cache import FirstBlockCache
from pocketgan.caches.mag_cache import MagCache
from pocketgan.caches.taylor_seer_cache import TaylorSeerCache
from pocketgan.caches.transformer_cache import TransformerCache

__all__ = [
    "DeepCache",
    "DenoiserCache",
    "FasterCache",
    "FirstBlockCache",
    "MagCache",
    "TaylorSeerCache",
    "TransformerCache",
]
