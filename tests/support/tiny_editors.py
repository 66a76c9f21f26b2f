"""Tiny editors with random weights, one of each family that DiffusersTeacher opens, saved as a repo would be."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ControlNetModel,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from tiny_pipeline import tiny_tokenizer
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
UNET = {
    "sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}  # fmt: skip


def _vae(channels: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=2, sample_size=32,
        scaling_factor=0.5, shift_factor=0.1,
    )  # fmt: skip


def _clip_config(projection: int = 16) -> CLIPTextConfig:
    words = len(tiny_tokenizer())
    return CLIPTextConfig(
        **TEXT, vocab_size=words, max_position_embeddings=32, projection_dim=projection, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def _stable_diffusion(unet: UNet2DConditionModel | None = None, scheduler: object = None) -> dict[str, object]:
    return {
        "vae": _vae(),
        "text_encoder": CLIPTextModel(_clip_config()),
        "tokenizer": tiny_tokenizer(),
        "unet": unet or UNet2DConditionModel(**UNET, cross_attention_dim=16),
        "scheduler": scheduler or EulerDiscreteScheduler(steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion() -> DiffusionPipeline:
    """Text to image; its editor is img2img."""
    return StableDiffusionPipeline(**_stable_diffusion())


def turbo() -> DiffusionPipeline:
    """As SD-Turbo: steps counted from the schedule's end, made for a single one."""
    return StableDiffusionPipeline(
        **_stable_diffusion(scheduler=EulerDiscreteScheduler(steps_offset=1, timestep_spacing="trailing"))
    )


def instruct_pix2pix() -> DiffusionPipeline:
    """The U-Net sees the photo's latents beside the noisy ones."""
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=16, in_channels=8)
    return StableDiffusionInstructPix2PixPipeline(**_stable_diffusion(unet, EulerAncestralDiscreteScheduler()))


def controlnet() -> DiffusionPipeline:
    """Stable Diffusion with a ControlNet in it."""
    unet = UNet2DConditionModel(**UNET, cross_attention_dim=16)
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    return StableDiffusionControlNetPipeline(**_stable_diffusion(unet), controlnet=control)


def stable_diffusion_xl() -> DiffusionPipeline:
    """Two text encoders, sizes as a condition."""
    unet = UNet2DConditionModel(
        **UNET, cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1),
    )


def flux_kontext() -> DiffusionPipeline:
    """A transformer over the tokens of noise and photo."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    t5 = T5Config(vocab_size=len(pieces), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(_clip_config()),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=T5Tokenizer(vocab=[(piece, -float(place)) for place, piece in enumerate(pieces)], extra_ids=0),
        transformer=FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        vae=_vae(),
    )  # fmt: skip


def _qwen_tokenizer() -> Qwen2Tokenizer:
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    words = [*special, "<|video_pad|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, "<|video_pad|>"]})
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def qwen_image_edit() -> DiffusionPipeline:
    """The photo goes through a vision-language model as well; its latents are always those of about 1024 × 1024."""
    tokenizer = _qwen_tokenizer()
    ids = {word: tokenizer.convert_tokens_to_ids(f"<|{word}|>") for word in ("vision_start", "vision_end", "image_pad")}
    rope = {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "num_key_value_heads": 2, "rope_parameters": rope, "vocab_size": len(tokenizer)},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
        image_token_id=ids["image_pad"],
    )  # fmt: skip
    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}}
    return QwenImageEditPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLQwenImage(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=Qwen2VLProcessor(
            Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(), tokenizer.chat_template
        ),
        transformer=QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=1,
            joint_attention_dim=16, axes_dims_rope=(4, 2, 2),
        ),
    )  # fmt: skip


def flux2_klein() -> DiffusionPipeline:
    """FLUX.2's transformer and autoencoder; several pictures are references of one edit."""
    tokenizer = _qwen_tokenizer()
    config = Qwen3Config(**TEXT, num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=512)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2(
            block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2, sample_size=32,
        ),
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
    )  # fmt: skip


def make_editor(family: Callable[[], DiffusionPipeline], folder: Path) -> Path:
    """Write a family's pipeline with the same random weights each time."""
    torch.manual_seed(0)
    family().save_pretrained(folder)
    return folder


def save_single_file(pipeline: StableDiffusionPipeline, file: Path) -> Path:
    """Write a tiny Stable Diffusion as one file in the original code's names, which diffusers reads back."""
    weights = {f"model.diffusion_model.{_unet_key(key)}": value for key, value in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        # the original attends by 1 × 1 convolutions
        is_matrix = "attentions" in key and value.ndim == 2
        weights[f"first_stage_model.{_vae_key(key)}"] = value[..., None, None] if is_matrix else value
    for key, value in pipeline.text_encoder.state_dict().items():
        prefix = "" if key.startswith("text_model.") else "text_model."
        weights[f"cond_stage_model.transformer.{prefix}{key}"] = value
    save_file({key: value.contiguous() for key, value in weights.items()}, file)
    return file


def _unet_key(key: str) -> str:
    renamed = {
        "conv_norm_out": "out.0", "conv_out": "out.2",
        "conv_in": "input_blocks.0.0",
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    parts = key.split(".")
    if parts[0] == "mid_block":
        place = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[parts[1] + parts[2]]
        parts = ["middle_block", str(place), *parts[3:]]
    elif parts[0] == "down_blocks":
        level, kind, layer = int(parts[1]), parts[2], int(parts[3])
        # a layer, and the step down to the next level
        place = 1 + 2 * level + (1 if kind == "downsamplers" else layer)
        inner = {"resnets": ["0"], "attentions": ["1"], "downsamplers": ["0", "op"]}[kind]
        parts = ["input_blocks", str(place), *inner, *parts[5 if kind == "downsamplers" else 4 :]]
    elif parts[0] == "up_blocks":
        level, kind, layer = int(parts[1]), parts[2], int(parts[3])
        place = 2 * level + (1 if kind == "upsamplers" else layer)
        # the upper level has attention, and the step up comes after it
        inner = {"resnets": "0", "attentions": "1", "upsamplers": "2" if level == 0 else "1"}[kind]
        parts = ["output_blocks", str(place), inner, *parts[4:]]
    elif parts[0] == "time_embedding":
        return f"time_embed.{0 if parts[1] == 'linear_1' else 2}.{parts[2]}"
    if "transformer_blocks" in parts:
        return ".".join(parts)
    return ".".join(renamed.get(part, part) for part in parts)


def _vae_key(key: str) -> str:
    renamed = {
        "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "to_q": "q", "to_k": "k", "to_v": "v",
        "group_norm": "norm", "to_out": "proj_out",
    }  # fmt: skip
    parts = key.replace("to_out.0", "to_out").split(".")
    if "mid_block" in parts:
        place = parts.index("mid_block")
        name = f"block_{int(parts[place + 2]) + 1}" if parts[place + 1] == "resnets" else "attn_1"
        parts[place : place + 3] = ["mid", name]
    elif len(parts) > 1 and parts[1] in {"down_blocks", "up_blocks"}:
        up, level = parts[1] == "up_blocks", int(parts[2])
        inner = ["block", parts[4]] if parts[3] == "resnets" else ["upsample" if up else "downsample"]
        parts[1:5] = ["up" if up else "down", str(1 - level if up else level), *inner]
    return ".".join(renamed.get(part, part) for part in parts)
