"""Adversarial and reconstruction losses."""

from pocketgan.losses.adversarial_loss import AdversarialLoss
from pocketgan.losses.hinge_loss import HingeLoss
from pocketgan.losses.least_squares_loss import LeastSquaresLoss
from pocketgan.losses.non_saturating_loss import NonSaturatingLoss
from pocketgan.losses.reconstruction_loss import L1Loss, ReconstructionLoss

__all__ = [
    "AdversarialLoss",
    "HingeLoss",
    "L1Loss",
    "LeastSquaresLoss",
    "NonSaturatingLoss",
    "ReconstructionLoss",
]
