"""Training recipes, one file each."""

from lightning_modules.adversarial_module import AdversarialModule
from lightning_modules.base_gan import BaseGAN
from lightning_modules.channel_condensation import ChannelCondensation
from lightning_modules.dgl_compression import DGLCompression
from lightning_modules.diffusion_adaptation import DiffusionAdaptation
from lightning_modules.diffusion_training import DiffusionTraining
from lightning_modules.full_fine_tuning import FullFineTuning
from lightning_modules.lora_adaptation import LoRAAdaptation
from lightning_modules.pair_synthesis import PairSynthesis
from lightning_modules.paired_gan import PairedGAN
from lightning_modules.personalization import Personalization
from lightning_modules.run import load_base, load_concepts, load_module, load_run, load_unpaired_run
from lightning_modules.run_state import read_config, trained_data_of
from lightning_modules.unpaired_dgl_compression import UnpairedDGLCompression
from lightning_modules.unpaired_gan import UnpairedGAN

__all__ = [
    "AdversarialModule",
    "BaseGAN",
    "ChannelCondensation",
    "DGLCompression",
    "DiffusionAdaptation",
    "DiffusionTraining",
    "FullFineTuning",
    "LoRAAdaptation",
    "PairSynthesis",
    "PairedGAN",
    "Personalization",
    "UnpairedDGLCompression",
    "UnpairedGAN",
    "load_base",
    "load_concepts",
    "load_module",
    "load_run",
    "load_unpaired_run",
    "read_config",
    "trained_data_of",
]
