"""Tiny diffusion transformers, their pipelines, and images in class folders."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image
from tiny import TINY_CONFIGS, real_photos

from pocketgan.cli import main
from pocketgan.images import to_image


def make_dit(seed: int = 0, **options: int | bool) -> DiTTransformer2DModel:
    """A transformer whose tensors all matter, its biases and gates too; the blocks' embeddings are copies of one."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 4,
        "sample_size": 4,
        "num_embeds_ada_norm": 10,
        "norm_num_groups": 4,
    }
    torch.manual_seed(seed)
    dit = DiTTransformer2DModel(**{**settings, **options})
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
    first = dit.transformer_blocks[0].norm1.emb.state_dict()
    for block in dit.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return dit


def make_pipeline(folder: Path, pixels: bool = False) -> Path:
    """A DiT pipeline for images of 32 px: on 4x4 latents, or on the pixels themselves, with an unused autoencoder."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=32,
    )
    dit = make_dit(in_channels=3, out_channels=3, sample_size=32, patch_size=8) if pixels else make_dit()
    DiTPipeline(dit, autoencoder, DDIMScheduler()).save_pretrained(folder)
    return folder


def make_class_folders(root: Path, classes: tuple[str, ...] = ("china", "flower", "third"), each: int = 10) -> Path:
    """Crops of photos, 40x36 px."""
    photos = real_photos(len(classes) * each, 40)
    for number, photo in enumerate(photos):
        folder = root / classes[number % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        to_image(photo[:, :36]).save(folder / f"{number:03d}.png")
    return root


def fit_dit(images: Path, pipeline: Path, run: Path, *arguments: str, config: str = "difffit") -> Path:
    """Adapt a pipeline through the command line."""
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'diffusion_adaptation' / f'{config}.yaml'}",
            f"--data.root={images}",
            f"--model.transformer={pipeline}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


def black(size: int) -> Image.Image:
    """A black square."""
    return Image.new("RGB", (size, size))
