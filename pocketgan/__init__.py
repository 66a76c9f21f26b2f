"""Pocket-size GANs distilled from diffusion edits."""
