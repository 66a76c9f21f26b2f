"""Custom Diffusion: a new word and the cross-attention's keys and values."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.unet import CUSTOM_DIFFUSION_WEIGHT_NAME_SAFE
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from safetensors.torch import save_file
from torch import Tensor, nn
from typing_extensions import override

from pocketgan.personalization.personalization_method import PersonalizationMethod, check_prior_weight
from pocketgan.personalization.placeholder_token import PlaceholderToken

WEIGHTS_FILE: str = CUSTOM_DIFFUSION_WEIGHT_NAME_SAFE


class CustomDiffusion(PersonalizationMethod):
    """Train a new token together with the maps from text to keys and values of the U-Net's cross-attention.

    Kumari et al., CVPR 2023, arXiv 2212.04488, and adobe-research/custom-diffusion. diffusers' attention processor
    keeps the trained maps beside the original ones; like that code and DVAR's it lets no gradient pass through the
    first token's keys and values: that token is the same in every prompt, and the concept shall not be learned there.
    Prior preservation needs class images in the data; the scaled photos with their masks are ``ConceptImages``'
    ``rescale``.

    Args:
        placeholder_token: The new word, which must be in every prompt; the paper's V*.
        initializer_token: A word of one token whose embedding it begins with; the paper takes a rare one.
        prior_weight: Factor on the loss on class images.

    Raises:
        ValueError: The weight is negative.
    """

    def __init__(self, placeholder_token: str, initializer_token: str, prior_weight: float = 1.0) -> None:
        self.token = placeholder_token
        self.prior_weight = check_prior_weight(prior_weight)
        self._placeholder = PlaceholderToken(placeholder_token, initializer_token)

    @override
    def _add(self, pipeline: StableDiffusionPipeline) -> None:
        self._placeholder.add(pipeline)
        self._unet = pipeline.unet
        processors = dict(self._unet.attn_processors)
        for name in processors:
            attention = self._unet.get_submodule(name.removesuffix(".processor"))
            if attention.is_cross_attention:
                processor = CustomDiffusionAttnProcessor2_0(
                    train_q_out=False,
                    hidden_size=attention.inner_dim,
                    cross_attention_dim=attention.cross_attention_dim,
                )
                processor.to_k_custom_diffusion.weight = nn.Parameter(attention.to_k.weight.detach().clone())
                processor.to_v_custom_diffusion.weight = nn.Parameter(attention.to_v.weight.detach().clone())
                processors[name] = processor
        self._unet.set_attn_processor(processors)

    @override
    def save(self, folder: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for name, processor in self._unet.attn_processors.items():
            if isinstance(processor, nn.Module):
                tensors |= {f"{name}.{key}": value.cpu().contiguous() for key, value in processor.state_dict().items()}
            else:
                # load_attn_procs wants an entry for each attention layer, save_attn_procs leaves out those without
                # weights in safetensors' format; an empty tensor is one
                tensors[name] = torch.empty(0)
        save_file(tensors, folder / WEIGHTS_FILE)
        self._placeholder.save(folder)


def load_custom_diffusion(pipeline: Any, folder: Path) -> None:
    """Load the keys and values that ``CustomDiffusion`` stored; the token comes by ``load_textual_inversion``.

    Works around diffusers 0.42.1's ``UNet2DConditionLoadersMixin.load_attn_procs``, which reads the file but sets the
    processors only if it gets the pipeline as the private ``_pipeline``
    (https://github.com/huggingface/diffusers/blob/v0.42.1/src/diffusers/loaders/unet.py).

    Args:
        pipeline: Any pipeline with the U-Net that it was trained on; changed in place.
        folder: Holds ``pytorch_custom_diffusion_weights.safetensors``.
    """
    pipeline.unet.load_attn_procs(str(folder), weight_name=WEIGHTS_FILE, _pipeline=pipeline)
