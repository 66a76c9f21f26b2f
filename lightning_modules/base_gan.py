"""The promptable base: one GAN that learns many concepts at once (E2GAN, section on the base model)."""

from lightning_modules.paired_gan import PairedGAN


class BaseGAN(PairedGAN):
    """E2GAN's base model, trained on a mix of concepts with their prompts (arXiv 2401.06127).

    All of it is the shared step: what makes it a base is that the data hold several concepts.
    """
