"""A small real Stable Diffusion pipeline for benchmarks: coloured shapes of 16 px, trained here from scratch.

python -m benchmarks.diffusion_world --out FOLDER

AutoencoderKL (16 px to 8 × 8 × 4), CLIPTextModel over 40 words and UNet2DConditionModel, in diffusers' own format. One
combination of colour and shape is held out: the concept that personalization learns. Beside it a judge, a small
classifier of colours and shapes that saw all of them, says how much of the concept a picture shows.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pocketgan.images import to_image
from pocketgan.personalization import ImageEmbedding

SIZE = 16
COLOURS = {
    "red": (0.9, 0.15, 0.15),
    "green": (0.15, 0.75, 0.2),
    "blue": (0.2, 0.3, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "cyan": (0.15, 0.85, 0.9),
    "magenta": (0.9, 0.2, 0.85),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross", "bar")
HELD_OUT = ("yellow", "ring")
SENTENCES = ("a photo of a {}", "a picture of the {}", "one {}", "a good photo of my {}")
RECIPE: dict[str, Any] = {
    "version": 1,  # of the code: raise it with each change of what is drawn or trained
    "seed": 0,
    "pictures": 8192,
    "vae": {"steps": 400, "batch": 32, "rate": 2e-3, "kl_weight": 1e-4},
    "denoiser": {"steps": 1600, "batch": 32, "rate": 2e-3, "without_prompt": 0.1},
    "judge": {"steps": 300, "batch": 64, "rate": 3e-3},
    "photos": 4,
    "class_photos": 48,
}


def draw(colour: str, shape: str, random: torch.Generator, size: int = SIZE) -> Tensor:
    """One picture (3, size, size) in [-1, 1]: place, extent, grey of the ground and shade of the colour are random."""
    fine = 4 * size  # drawn finer and averaged, or edges would be stairs
    radius, across, down, ground, shade = torch.rand(5, generator=random).tolist()
    radius = (0.32 + 0.1 * radius) * fine
    centre = (radius + across * (fine - 2 * radius), radius + down * (fine - 2 * radius))
    y, x = torch.meshgrid(torch.arange(fine) + 0.5, torch.arange(fine) + 0.5, indexing="ij")
    x, y = (x - centre[0]) / radius, (y - centre[1]) / radius
    distance = (x**2 + y**2).sqrt()
    inside = {
        "circle": distance < 1,
        "square": torch.maximum(x.abs(), y.abs()) < 0.85,
        "triangle": (y < 0.8) & (y > 2 * x.abs() - 1),
        "ring": (distance < 1) & (distance > 0.55),
        "cross": (torch.minimum(x.abs(), y.abs()) < 0.3) & (torch.maximum(x.abs(), y.abs()) < 1),
        "bar": (y.abs() < 0.35) & (x.abs() < 1),
    }[shape]
    paint = torch.tensor(COLOURS[colour])[:, None, None] * (0.85 + 0.15 * shade)
    picture = torch.where(inside, paint, torch.full((3, 1, 1), 0.1 + 0.3 * ground))
    return F.avg_pool2d(picture, 4) * 2 - 1


def pictures(kinds: list[tuple[str, str]], seed: int) -> Tensor:
    """Pictures (N, 3, 16, 16) of kinds of colour and shape."""
    random = torch.Generator().manual_seed(seed)
    return torch.stack([draw(colour, shape, random) for colour, shape in kinds])


def kinds(count: int, held_out: bool) -> list[tuple[str, str]]:
    """Colours and shapes in turn, with or without the held-out pair."""
    every = [kind for kind in itertools.product(COLOURS, SHAPES) if held_out or kind != HELD_OUT]
    return [every[number % len(every)] for number in range(count)]


def word_tokenizer(words: set[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with these words, one token each.

    Merges join a word from its end: ``g</w>``, ``ng</w>``, ``ing</w>``, ``ring</w>``. A word's ends are never part of
    another word's way, so that no word hinders another.
    """
    letters = sorted({letter for word in words for letter in word} | set("<>-*"))
    merges, ends = [], []
    for word in sorted(words):
        for place in range(len(word) - 2, -1, -1):
            merge = (word[place], f"{word[place + 1 :]}</w>")
            if merge not in merges:
                merges.append(merge)
                ends.append(f"{word[place:]}</w>")
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), *ends]
    table = {token: place for place, token in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=16)


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A tiny CLIP text encoder (B, 16) to (B, 16, 32) for the tokenizer's words, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


class Judge(ImageEmbedding):
    """A classifier of colour and shape; its last features serve as the embedding that CLIP is for real photos.

    Args:
        weights: File that ``build`` wrote.
    """

    score_name = "judge_image_score"

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 64), nn.ReLU(),
        )  # fmt: skip
        self.colour, self.shape = nn.Linear(64, len(COLOURS)), nn.Linear(64, len(SHAPES))
        if weights:
            self.load_state_dict(load_file(weights))
            self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.features(images)
        return features

    @torch.no_grad()
    def concept_score(self, images: Tensor) -> float:
        """Mean over pictures of the probability that one is yellow times the probability that it is a ring."""
        features = self(images)
        colour = self.colour(features).softmax(1)[:, list(COLOURS).index(HELD_OUT[0])]
        shape = self.shape(features).softmax(1)[:, SHAPES.index(HELD_OUT[1])]
        return float((colour * shape).mean())


def batches(count: int, size: int, steps: int, random: torch.Generator) -> Iterator[Tensor]:
    """Random places of examples, so many times."""
    for _ in range(steps):
        yield torch.randint(count, (size,), generator=random)


def optimizer(parameters: list[nn.Parameter], rate: float, steps: int) -> tuple[torch.optim.Optimizer, Any]:
    """AdamW with a warm-up and a cosine to 0."""
    adam = torch.optim.AdamW(parameters, rate)
    return adam, torch.optim.lr_scheduler.OneCycleLR(adam, rate, steps, pct_start=0.1)


def train_judge(random: torch.Generator) -> Judge:
    settings, every = RECIPE["judge"], kinds(RECIPE["pictures"], held_out=True)
    seen = pictures(every, RECIPE["seed"] + 1)
    colours = torch.tensor([list(COLOURS).index(colour) for colour, _ in every])
    shapes = torch.tensor([SHAPES.index(shape) for _, shape in every])
    judge = Judge()
    adam, schedule = optimizer(list(judge.parameters()), settings["rate"], settings["steps"])
    for places in batches(len(seen), settings["batch"], settings["steps"], random):
        noisy = seen[places] + 0.1 * torch.rand(len(places), 1, 1, 1) * torch.randn(len(places), 3, SIZE, SIZE)
        features = judge(noisy)
        loss = F.cross_entropy(judge.colour(features), colours[places])
        loss += F.cross_entropy(judge.shape(features), shapes[places])
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return judge


def train_vae(seen: Tensor, random: torch.Generator) -> AutoencoderKL:
    settings = RECIPE["vae"]
    vae = AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=SIZE,
    )  # fmt: skip
    adam, schedule = optimizer(list(vae.parameters()), settings["rate"], settings["steps"])
    for places in batches(len(seen), settings["batch"], settings["steps"], random):
        posterior = vae.encode(seen[places]).latent_dist
        error = F.mse_loss(vae.decode(posterior.sample()).sample, seen[places])
        loss = error + settings["kl_weight"] * posterior.kl().mean() / posterior.mean[0].numel()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        spread = vae.encode(seen[:512]).latent_dist.sample().std()
    vae.register_to_config(scaling_factor=1 / spread.item())
    print(f"vae: squared error {error.item():.4f}, deviation of latents {spread:.3f}", flush=True)
    return vae.eval().requires_grad_(False)


def train_denoiser(seen: Tensor, names: list[str], vae: AutoencoderKL, random: torch.Generator) -> tuple[Any, ...]:
    words = {*COLOURS, *SHAPES, "object", "close", "up", "far", "away", "very", "small", "zoomed", "in"}
    words |= {word for sentence in SENTENCES for word in sentence.split() if word != "{}"}
    settings, tokenizer = RECIPE["denoiser"], word_tokenizer(words)
    text = text_encoder(tokenizer)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    prompts = [sentence.format(name) for name in names for sentence in SENTENCES]
    tokens = tokenizer([*prompts, ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        posterior = vae.encode(seen).latent_dist
    adam, schedule = optimizer([*text.parameters(), *unet.parameters()], settings["rate"], settings["steps"])
    losses = []
    for places in batches(len(seen), settings["batch"], settings["steps"], random):
        latents = posterior.mean[places] + posterior.std[places] * torch.randn(len(places), *posterior.mean.shape[1:])
        latents = latents * vae.config.scaling_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(1000, (len(places),))
        sentence = places * len(SENTENCES) + torch.randint(len(SENTENCES), (len(places),))
        sentence[torch.rand(len(places)) < settings["without_prompt"]] = len(prompts)
        states = text(tokens[sentence])[0]
        loss = F.mse_loss(unet(scheduler.add_noise(latents, noise, timesteps), timesteps, states).sample, noise)
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*text.parameters(), *unet.parameters()], 1.0)
        adam.step()
        schedule.step()
        losses.append(loss.item())
    print(f"denoiser: loss {sum(losses[-100:]) / 100:.4f}", flush=True)
    return (
        tokenizer,
        text.eval(),
        unet.eval(),
        DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    )


def build(out: Path) -> Path:
    """Make the world, or find it.

    Args:
        out: Folder of worlds; this recipe's lies in it under its hash.

    Returns:
        Folder with ``pipeline/``, ``judge.safetensors``, ``photos/`` of the concept and ``class_photos/``.
    """
    recipe = json.dumps([RECIPE, COLOURS, SHAPES, HELD_OUT, SENTENCES])
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    world = out / f"world-{digest}"
    if world.is_dir():
        return world
    building = out / f"world-{digest}.building"
    shutil.rmtree(building, ignore_errors=True)
    (building / "photos").mkdir(parents=True)
    (building / "class_photos").mkdir()
    torch.manual_seed(RECIPE["seed"])
    random = torch.Generator().manual_seed(RECIPE["seed"])
    begun = time.process_time()
    judge = train_judge(random)
    fresh = pictures([HELD_OUT] * 256, 99)
    print(f"judge: concept score of real pictures {judge.concept_score(fresh):.3f}", flush=True)
    seen_kinds = kinds(RECIPE["pictures"], held_out=False)
    seen = pictures(seen_kinds, RECIPE["seed"])
    vae = train_vae(seen, random)
    print(f"{time.process_time() - begun:.0f} CPU seconds", flush=True)
    names = [f"{colour} {shape}" for colour, shape in seen_kinds]
    tokenizer, text, unet, scheduler = train_denoiser(seen, names, vae, random)
    pipeline = StableDiffusionPipeline(
        vae,
        text,
        tokenizer,
        unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(building / "pipeline")
    save_file(judge.state_dict(), building / "judge.safetensors")
    for number, picture in enumerate(pictures([HELD_OUT] * RECIPE["photos"], 7)):
        to_image(picture).save(building / "photos" / f"{number}.png")
    rings = [kind for kind in kinds(RECIPE["pictures"], held_out=False) if kind[1] == HELD_OUT[1]]
    chosen = rings[: RECIPE["class_photos"]]
    for number, picture in enumerate(pictures(chosen, 8)):
        to_image(picture).save(building / "class_photos" / f"{number:02d}.png")
    seconds = time.process_time() - begun
    count = sum(weight.numel() for weight in unet.parameters())
    (building / "recipe.json").write_text(
        json.dumps({**RECIPE, "cpu_seconds": seconds, "unet_parameters": count}, indent=2)
    )
    print(f"{seconds:.0f} CPU seconds, {count:,} parameters in the U-Net", flush=True)
    building.rename(world)
    return world


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    print(build(parser.parse_args().out.resolve()))
