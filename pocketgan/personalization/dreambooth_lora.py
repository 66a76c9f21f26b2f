"""DreamBooth with LoRA: low-rank deltas on the U-Net's attention."""

from pathlib import Path

from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from typing_extensions import override

from pocketgan.personalization.personalization_method import PersonalizationMethod, check_prior_weight
from pocketgan.personalization.placeholder_token import PlaceholderToken


class DreamBoothLoRA(PersonalizationMethod):
    """Bind an identifier to the concept by LoRA on the U-Net.

    Ruiz et al., *DreamBooth*, CVPR 2023, arXiv 2208.12242, with LoRA as in cloneofsimo/lora, which DVAR's code uses:
    A ~ N(0, 1/rank²), B = 0, scale 1. Its default layers are the attention's linear ones and the feed-forward's
    ``ff.net.0.proj``; the default here is the attention alone, as in diffusers' ``examples/dreambooth``.

    Args:
        identifier: The word for the concept, which must be in every prompt: a rare one that the tokenizer knows, such
            as sks, or a new one with an initializer.
        initializer_token: If given, the identifier is a new token that trains, too, and begins with this word's
            embedding, as in DVAR's code; if None the text encoder stays as it is, as in diffusers'.
        rank: Rank of the deltas.
        targets: Ends of the names of the U-Net's layers that get one.
        prior_weight: Factor on the loss on class images; 0 for none, as in DVAR's runs. The paper has 1.

    Raises:
        ValueError: The rank is below 1, no layer is named, or the weight is negative.
    """

    def __init__(
        self,
        identifier: str,
        initializer_token: str | None = None,
        rank: int = 4,
        targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
        prior_weight: float = 0.0,
    ) -> None:
        if rank < 1 or not targets:
            raise ValueError(f"rank is {rank} on {len(targets)} kinds of layers; give 1 or more of each")
        self.token = identifier
        self.rank, self.targets = rank, targets
        self.prior_weight = check_prior_weight(prior_weight)
        self._placeholder = PlaceholderToken(identifier, initializer_token) if initializer_token else None

    @override
    def _add(self, pipeline: StableDiffusionPipeline) -> None:
        if self._placeholder:
            self._placeholder.add(pipeline)
        self._unet = pipeline.unet
        # alpha = rank: scale 1, which diffusers also assumes of a file that does not say
        self._unet.add_adapter(
            LoraConfig(
                r=self.rank, lora_alpha=self.rank, init_lora_weights="gaussian", target_modules=list(self.targets)
            )
        )

    @override
    def save(self, folder: Path) -> None:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self._unet))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        if self._placeholder:
            self._placeholder.save(folder)
