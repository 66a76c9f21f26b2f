"""A tiny Stable Diffusion pipeline with random weights, and a concept's folder of photos."""

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny import TINY_CONFIGS, real_photos
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pocketgan.cli import main
from pocketgan.images import to_image

PROMPT = "a photo of <ring>"
SIZE = 32


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with an alphabet for a vocabulary: a word of one letter is one token."""
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789<>-,.*!"))
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=32)


def make_pipeline(folder: Path) -> Path:
    """Write a pipeline that edits 32 px at an eighth of Stable Diffusion's widths or less."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=SIZE,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16, block_out_channels=(16, 32), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def open_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline afresh from disk."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(pipeline: Any, prompt: str = PROMPT) -> torch.Tensor:
    """One picture (1, 3, 32, 32), the same for the same weights."""
    made = pipeline(prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt")
    return made.images


def shaken(parameters: list[torch.nn.Parameter]) -> None:
    """Move trained weights away from where they began, far enough to show."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))


def make_photos(folder: Path, count: int = 4, size: int = 40) -> Path:
    """Photos of a concept, or of a class."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(real_photos(count, size)):
        to_image(photo).save(folder / f"{number}.png")
    return folder


def make_clip(folder: Path) -> Path:
    """A tiny CLIP with random weights."""
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 32, "patch_size": 8}
    # the tokens of tiny_tokenizer
    text_config = {**text, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(text_config=text_config, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def personalize(method: str, pipeline: Path, photos: Path, run: Path, *arguments: str) -> Path:
    """Train a tiny config through the command line."""
    words = [
        f"-c={TINY_CONFIGS / 'personalization' / f'{method}.yaml'}",
        f"--model.pipeline={pipeline}",
        f"--data.root={photos}",
        f"--trainer.default_root_dir={run}",
    ]
    if method == "custom_diffusion":
        words.append(f"--data.class_root={photos}")
    main(["fit", *words, *arguments])
    return run
