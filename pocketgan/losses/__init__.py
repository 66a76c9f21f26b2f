"""Losses of GANs and of diffusion models."""

from pocketgan.losses.adversarial_loss import AdversarialLoss
from pocketgan.losses.diffusion_loss import DiffusionLoss
from pocketgan.losses.discriminator_regularization import DiscriminatorRegularization
from pocketgan.losses.generator_regularization import GeneratorRegularization
from pocketgan.losses.hinge_loss import HingeLoss
from pocketgan.losses.least_squares_loss import LeastSquaresLoss
from pocketgan.losses.non_saturating_loss import NonSaturatingLoss
from pocketgan.losses.path_length_regularization import PathLengthRegularization
from pocketgan.losses.r1_regularization import R1Regularization
from pocketgan.losses.reconstruction_loss import L1Loss, ReconstructionLoss
from pocketgan.losses.snr_weighting import MinSNRWeighting, SNRWeighting, UniformWeighting

__all__ = [
    "AdversarialLoss",
    "DiffusionLoss",
    "DiscriminatorRegularization",
    "GeneratorRegularization",
    "HingeLoss",
    "L1Loss",
    "LeastSquaresLoss",
    "MinSNRWeighting",
    "NonSaturatingLoss",
    "PathLengthRegularization",
    "R1Regularization",
    "ReconstructionLoss",
    "SNRWeighting",
    "UniformWeighting",
]
