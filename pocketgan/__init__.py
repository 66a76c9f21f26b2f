"""Pocket-size GANs distilled from diffusion edits."""

from pocketgan.loaded_model import LoadedModel, load

__all__ = ["LoadedModel", "load"]
