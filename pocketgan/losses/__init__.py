"""Losses of paired GANs and of diffusion models."""

from pocketgan.losses.adversarial_loss import AdversarialLoss
from pocketgan.losses.diffusion_loss import DiffusionLoss
from pocketgan.losses.hinge_loss import HingeLoss
from pocketgan.losses.least_squares_loss import LeastSquaresLoss
from pocketgan.losses.non_saturating_loss import NonSaturatingLoss
from pocketgan.losses.reconstruction_loss import L1Loss, ReconstructionLoss
from pocketgan.losses.snr_weighting import MinSNRWeighting, SNRWeighting, UniformWeighting

__all__ = [
    "AdversarialLoss",
    "DiffusionLoss",
    "HingeLoss",
    "L1Loss",
    "LeastSquaresLoss",
    "MinSNRWeighting",
    "NonSaturatingLoss",
    "ReconstructionLoss",
    "SNRWeighting",
    "UniformWeighting",
]
