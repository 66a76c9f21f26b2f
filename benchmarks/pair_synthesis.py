"""What do caches and fewer steps save a diffusion teacher, and what do they change?

python -m benchmarks.pair_synthesis --out FOLDER [--size 32|64]

Two editors that benchmarks.tiny_editor trains (an InstructPix2Pix U-Net and a transformer of FLUX.1 Kontext's kind)
edit photos that they never saw, through DiffusersTeacher as `pocketgan predict` calls it, one photo a call. Sides take
turns photo by photo, so that load from elsewhere falls on all alike.
"""

import argparse
import contextlib
import io
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import MagCacheConfig
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.runs import command_block, commit
from benchmarks.tiny_editor import RECIPE, build, build_pairs
from pocketgan.caches import DeepCache, DenoiserCache, FasterCache, FirstBlockCache, MagCache, TaylorSeerCache
from pocketgan.images import to_image
from pocketgan.teachers import DiffusersTeacher

STEPS = 20
FEWER = (10, 7, 4)
SEEDS = (0, 1, 2)


def sides_of(kind: str, ratios: list[float]) -> dict[str, tuple[int, Callable[[], DenoiserCache] | None]]:
    """Label, steps and cache; the first is what the others are compared with, the next ones must not change a bit."""
    plain: dict[str, tuple[int, Callable[[], DenoiserCache] | None]] = {f"{STEPS} steps": (STEPS, None)}
    fewer: dict[str, tuple[int, Callable[[], DenoiserCache] | None]] = {f"{n} steps": (n, None) for n in FEWER}
    if kind == "unet":
        cached: dict[str, Callable[[], DenoiserCache]] = {
            "DeepCache, N = 1": lambda: DeepCache(1),
            "DeepCache, N = 2": lambda: DeepCache(2),
            "DeepCache, N = 3": lambda: DeepCache(3),
            "DeepCache, N = 5": lambda: DeepCache(5),
        }
    else:
        cached = {
            "FirstBlockCache, threshold 0": lambda: FirstBlockCache(0),
            "TaylorSeerCache, N = 1": lambda: TaylorSeerCache(1),
            "FasterCache, N = 1": lambda: FasterCache(1),
            "MagCache, no skips": lambda: MagCache(max_skips=0, ratios=ratios),
            "FirstBlockCache, 0.05": lambda: FirstBlockCache(0.05),
            "FirstBlockCache, 0.15": lambda: FirstBlockCache(0.15),
            "FirstBlockCache, 0.3": lambda: FirstBlockCache(0.3),
            "TaylorSeerCache, N = 2": lambda: TaylorSeerCache(2),
            "TaylorSeerCache, N = 3": lambda: TaylorSeerCache(3),
            "TaylorSeerCache, N = 5": lambda: TaylorSeerCache(5),
            "FasterCache, N = 2": lambda: FasterCache(2, last_time=1001),
            "MagCache, 0.06": lambda: MagCache(0.06, ratios=ratios),
            "MagCache, 0.2": lambda: MagCache(0.2, ratios=ratios),
        }
    return plain | {label: (STEPS, cache) for label, cache in cached.items()} | fewer


def measured_ratios(teacher: DiffusersTeacher, photo: Tensor, prompt: str) -> list[float]:
    """MagCache's ratios of one photo, by diffusers' own calibration, which prints them."""
    transformer = teacher._pipeline.transformer
    transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), transformer.cache_context("edit"):
        teacher.edit(photo, prompt, [0])
    transformer.disable_cache()
    found = re.search(r"\[[-\d., e]+\]", printed.getvalue())
    assert found, "diffusers prints them at the last step"
    ratios: list[float] = json.loads(found[0])
    return ratios


def measure(kind: str, out: Path, size: int, photos_count: int) -> tuple[str, Image.Image]:
    """A table of one editor's sides, and a picture of them."""
    recipe = {**RECIPE, "size": size}
    folder, pairs = build(out, kind, recipe), load_file(build_pairs(out, recipe) / "pairs.safetensors")
    photos, targets = pairs["held_out_photo"][:photos_count], pairs["held_out_edit"][:photos_count]
    prompts: dict[str, str] = json.loads((folder / "prompts.json").read_text())
    arguments: dict[str, Any] = json.loads((folder / "arguments.json").read_text())

    def teacher_of(steps: int, cache: DenoiserCache | None) -> DiffusersTeacher:
        given = {**arguments, "num_inference_steps": steps}
        return DiffusersTeacher(str(folder / "pipeline"), prompts, given, cache=cache)

    concepts = list(prompts.values())
    is_transformer = kind == "transformer"
    ratios = measured_ratios(teacher_of(STEPS, None), photos[:1], concepts[0]) if is_transformer else []
    sides = {
        label: teacher_of(steps, cache() if cache else None) for label, (steps, cache) in sides_of(kind, ratios).items()
    }
    flops = {}
    for label, teacher in sides.items():
        with FlopCounterMode(display=False) as counter:
            teacher.edit(photos[:1], concepts[0], [0])
        flops[label] = counter.get_total_flops() / 1e9
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    edits: dict[str, list[list[Tensor]]] = {label: [[] for _ in SEEDS] for label in sides}
    for place, seed in enumerate(SEEDS):
        for row in range(len(photos)):
            for label, teacher in sides.items():
                begun = time.perf_counter()
                edit = teacher.edit(photos[row : row + 1], concepts[row % len(concepts)], [1000 * seed + row])
                seconds[label].append(time.perf_counter() - begun)
                edits[label][place].append(edit)
    made = {label: [torch.cat(run) for run in runs] for label, runs in edits.items()}
    wanted = torch.stack([targets[row, row % len(concepts)] for row in range(len(photos))])
    reference = next(iter(sides))
    lines = [
        "| side | GFLOPs a photo | of the first | time, of the first | identical | difference to the first, L1 | "
        "L1 to the embedded teacher |\n|---|---|---|---|---|---|---|"
    ]
    for label in sides:
        same = all(torch.equal(one, other) for one, other in zip(made[label], made[reference], strict=True))
        apart = [(one - other).abs().mean().item() for one, other in zip(made[label], made[reference], strict=True)]
        missed = [(run - wanted).abs().mean().item() for run in made[label]]
        share = [one / other for one, other in zip(seconds[label], seconds[reference], strict=True)]
        lines.append(
            f"| {label} | {flops[label]:.2f} | {flops[label] / flops[reference]:.2f} | "
            f"{statistics.median(share):.2f} | {'yes' if same else 'no'} | {spread(apart)} | {spread(missed)} |"
        )
    time_of_first = statistics.median(seconds[reference])
    lines.append(f"\nMedian time of the first: {1e3 * time_of_first:.0f} ms a photo.")
    return "\n".join(lines), picture(photos, wanted, {label: runs[0] for label, runs in made.items()})


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def picture(photos: Tensor, wanted: Tensor, edits: dict[str, Tensor], shown: int = 6, side: int = 96) -> Image.Image:
    """Photo, embedded teacher and all sides in rows."""
    rows = {"photo": photos, "embedded teacher": wanted, **edits}
    label_width = 220
    sheet = Image.new("RGB", (label_width + shown * (side + 4), len(rows) * (side + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, images) in enumerate(rows.items()):
        pen.text((4, number * (side + 4) + side // 2 - 6), label, fill="black")
        for column in range(shown):
            image = to_image(images[column]).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(image, (label_width + column * (side + 4), number * (side + 4)))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, choices=(32, 64), default=64)
    parser.add_argument("--photos", type=int, default=24)
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    page = [
        f"# What do caches and fewer steps save a diffusion teacher?\n\n{command_block(__doc__)}\n",
        f"{options.photos} crops of 2 unseen photos at {options.size} px, {len(SEEDS)} seeds (mean ± standard "
        f"deviation), {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers "
        f"{diffusers.__version__}, commit {commit()}.\n",
    ]
    for kind, title in (("unet", "U-Net, InstructPix2Pix"), ("transformer", "Transformer, of FLUX.1 Kontext's kind")):
        table, sheet = measure(kind, options.out.resolve(), options.size, options.photos)
        page.append(f"## {title}\n\n{table}\n")
        sheet.save(options.out / f"pair_synthesis_{kind}.png")
    print("\n".join(page))
