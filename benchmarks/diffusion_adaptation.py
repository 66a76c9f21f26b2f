"""DiffFit, BitFit, LoRA or all weights: which adapts a small diffusion transformer best, and at what cost?

python -m benchmarks.diffusion_adaptation --cache FOLDER --out FOLDER

A transformer of 0.6 M weights learns 30 classes of shapes, then five classes of another look. What the
first start makes of that world lies in the cache under a hash of its recipe; runs that are done are not done again.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import disable_possible_user_warnings
from PIL import Image, ImageDraw

from benchmarks.runs import command_block, commit, mean_and_spread
from callbacks import ImageBudget
from datamodules import LabelledLatents
from lightning_modules import DiffusionAdaptation
from pocketgan.adapters import (
    AllWeights,
    BitFit,
    DiffFit,
    DiffusionAdapter,
    DiffusionLoRA,
    adapter_bytes,
    load_trained,
    merge_diffusion_adapter,
)
from pocketgan.losses import DiffusionLoss

RECIPE: dict[str, Any] = {
    "transformer": {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "num_layers": 6,
        "in_channels": 3,
        "out_channels": 3,
        "sample_size": 16,
        "patch_size": 4,
        "num_embeds_ada_norm": 30,
        "norm_num_groups": 4,
    },
    "base": {"classes": 30, "images": 100, "steps": 2000, "batch_size": 32, "learning_rate": 1e-3},
    "new": {"classes": 5, "images": 200},
    "version": 1,
}
STEPS, BATCH = 150, 24
SHAPES = ("disc", "square", "triangle", "cross", "bar", "diamond")
COLOURS = ((230, 60, 50), (60, 190, 80), (70, 110, 240), (240, 210, 60), (200, 80, 220))
PEFT_RATES, FULL_RATES = (1e-3, 1e-2, 3e-2, 1e-1), (3e-4, 1e-3, 3e-3, 1e-2)
METHODS: dict[str, tuple[DiffusionAdapter, tuple[float, ...]]] = {
    "all weights": (AllWeights(), FULL_RATES),
    "BitFit": (BitFit(), PEFT_RATES),
    "DiffFit, first half": (DiffFit(), PEFT_RATES),
    "DiffFit, all blocks": (DiffFit(1.0), PEFT_RATES),
    "LoRA, rank 4 on q, k, v": (DiffusionLoRA(4, ("attn1.to_q", "attn1.to_k", "attn1.to_v")), PEFT_RATES),
    "LoRA, rank 2 on q, v": (DiffusionLoRA(2), PEFT_RATES),
}


def _outline(shape: str, centre: np.ndarray, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape, or a box's two where it is a disc."""
    corners = {
        "disc": [(-1, -1), (1, 1)],
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
        "cross": [
            *[(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)],
            *[(0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)],
        ],
        "bar": [(-1, -0.35), (1, -0.35), (1, 0.35), (-1, 0.35)],
        "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    }[shape]
    return [(float(centre[0] + radius * x), float(centre[1] + radius * y)) for x, y in corners]


def _picture(draw: np.random.Generator, label: int, new: bool) -> Image.Image:
    """A shape at a random place, 16 px; 4 times oversampled.

    Base classes are filled shapes of a colour on black, new ones outlines of a shape on light stripes of a colour.
    """
    side = 64
    centre, radius = draw.uniform(24, 40, 2), draw.uniform(14, 22)
    shape = SHAPES[label % len(SHAPES)]
    colour = COLOURS[label % len(COLOURS)] if new else COLOURS[label // len(SHAPES)]
    image = Image.new("RGB", (side, side), (225, 220, 205) if new else (10, 10, 14))
    canvas = ImageDraw.Draw(image)
    if new:
        for start in range(int(draw.integers(0, 16)) - 16, side, 16):
            canvas.rectangle([0, start, side, start + 7], fill=tuple(int(0.5 * part + 110) for part in colour))
    corners = _outline(shape, centre, radius)
    if shape == "disc":
        canvas.ellipse([*corners[0], *corners[1]], None if new else colour, (20, 20, 60) if new else None, 7)
    elif new:
        canvas.line([*corners, corners[0]], (20, 20, 60), 7)
    else:
        canvas.polygon(corners, colour)
    return image.resize((16, 16), Image.Resampling.BOX)


def draw_classes(root: Path, classes: int, images: int, new: bool) -> None:
    """Write images of generated shapes into a folder for each class."""
    draw = np.random.default_rng(int(new))
    for label in range(classes):
        folder = root / f"{label:02d}"
        folder.mkdir(parents=True)
        for number in range(images):
            _picture(draw, label, new).save(folder / f"{number:03d}.png")


def fit(
    images: Path,
    transformer: str | DiTTransformer2DModel,
    adapter: DiffusionAdapter,
    rate: float,
    steps: int,
    batch_size: int,
    split: tuple[float, float, float],
    new_classes: bool,
    seed: int,
) -> tuple[DiffusionAdaptation, dict[str, float]]:
    """Train; the module and its figures on validation and test images. The seed deals split, order, weights, noise."""
    seed_everything(seed, verbose=False)
    model = DiffusionAdaptation(
        transformer,
        adapter,
        DiffusionLoss(),
        partial(torch.optim.AdamW, lr=rate, weight_decay=0.0),
        new_classes=new_classes,
    )
    data = LabelledLatents(images, size=16, flip=False, batch_size=batch_size, split=split, seed=seed)
    bare = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    if steps:
        trainer = Trainer(
            max_epochs=-1,
            limit_val_batches=0,
            enable_checkpointing=False,
            callbacks=[ImageBudget(steps * batch_size)],
            **bare,
        )
        trainer.fit(model, data)
    measure = Trainer(**bare)
    figures = {
        "val": measure.validate(model, data, verbose=False)[0]["val/objective"],
        "test": measure.test(model, data, verbose=False)[0]["test/objective"],
    }
    return model, figures


def world(cache: Path) -> tuple[Path, Path]:
    """The base transformer and the new classes' images, made on first use."""
    folder = cache / hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:16]
    base = RECIPE["base"]
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        draw_classes(folder / "base", base["classes"], base["images"], new=False)
        draw_classes(folder / "new", RECIPE["new"]["classes"], RECIPE["new"]["images"], new=True)
        torch.manual_seed(0)
        model, figures = fit(
            folder / "base",
            DiTTransformer2DModel(**RECIPE["transformer"]),
            AllWeights(),
            base["learning_rate"],
            base["steps"],
            base["batch_size"],
            (0.9, 0.05, 0.05),
            new_classes=False,
            seed=0,
        )
        load_trained(model.transformer, model.averaged)
        merge_diffusion_adapter(model.transformer).save_pretrained(folder / "transformer")
        (folder / "done").write_text(json.dumps(figures))
    return folder / "transformer", folder / "new"


class Benchmark:
    """Every method, rate and seed on one base."""

    def __init__(self, cache: Path, out: Path, seeds: int) -> None:
        self.transformer, self.images = world(cache)
        self.out, self.seeds = out, range(seeds)
        out.mkdir(parents=True, exist_ok=True)

    def fitted(self, method: str, rate: float, seed: int, steps: int) -> tuple[DiffusionAdaptation, dict[str, float]]:
        split = (0.4, 0.2, 0.4)
        adapter = METHODS[method][0]
        return fit(self.images, str(self.transformer), adapter, rate, steps, BATCH, split, new_classes=True, seed=seed)

    def result(self, method: str, rate: float, seed: int, steps: int = STEPS) -> dict[str, float]:
        """Figures of one run; read where it is done."""
        file = self.out / f"{method.replace(' ', '_').replace(',', '')}_{rate:g}_{seed}_{steps}.json"
        if not file.exists():
            model, figures = self.fitted(method, rate, seed, steps)
            content = adapter_bytes(model.adapter, model.averaged, model.classes, True, model.base_sha256)
            figures |= {"bytes": len(content), "parameters": sum(map(torch.numel, model.trained.values()))}
            file.write_text(json.dumps(figures))
            print(f"{time.strftime('%H:%M:%S')} {file.stem} {figures['test']:.4f}", flush=True)
        found: dict[str, float] = json.loads(file.read_text())
        return found

    def step_ratios(self, turns: int) -> dict[str, float]:
        """Median time of a step over that of full fine-tuning in the same turn."""
        steps = {}
        for method in METHODS:
            torch.manual_seed(0)
            model, _ = self.fitted(method, 1e-3, 0, 0)
            model.train()
            batch = {"latents": torch.randn(BATCH, 3, 16, 16), "label": torch.arange(BATCH) % RECIPE["new"]["classes"]}
            steps[method] = partial(_step, model, model.configure_optimizers(), model.frozen(batch))
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        for turn in range(turns + 3):
            for method, step in steps.items():
                begun = time.perf_counter()
                step()
                if turn >= 3:
                    seconds[method].append(time.perf_counter() - begun)
        full = seconds["all weights"]
        return {
            method: statistics.median(one / other for one, other in zip(taken, full, strict=True))
            for method, taken in seconds.items()
        }

    def page(self, turns: int) -> str:
        """Train everything that is not there yet; the committed Markdown."""
        start = [self.result("BitFit", 1e-3, seed, steps=0)["test"] for seed in self.seeds]
        rows = {
            (method, rate): [self.result(method, rate, seed) for seed in self.seeds]
            for method, (_, rates) in METHODS.items()
            for rate in rates
        }
        ratios = self.step_ratios(turns)
        whole = rows["all weights", FULL_RATES[0]][0]["parameters"]
        lines, best = [], {}
        for method, (_, rates) in METHODS.items():
            # by validation images of seed 0
            best[method] = min(rates, key=lambda rate, method=method: rows[method, rate][0]["val"])  # type: ignore[misc]
            for rate in rates:
                found = rows[method, rate]
                figure = mean_and_spread([row["test"] for row in found])
                cells = [
                    f"{rate:g}",
                    f"**{figure}**" if rate == best[method] else figure,
                    f"{found[0]['parameters']:,} ({found[0]['parameters'] / whole:.2%})",
                    f"{found[0]['bytes'] / 1024:.1f}",
                    f"{ratios[method]:.2f}",
                ]
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
        base = RECIPE["base"]
        return (
            "# DiffFit, BitFit, LoRA or all weights?\n\n"
            f"A DiT of {whole:,} weights (64 features, 6 blocks, 16 px pictures) trained for {base['steps']:,} steps "
            f"of {base['batch_size']} on 30 classes of filled shapes at a learning rate of {base['learning_rate']:g}, "
            f"then adapted to 5 classes of outlines on stripes: 400 images, {STEPS} steps of {BATCH} for each method, "
            f"{len(self.seeds)} seeds: mean ± standard deviation. Objective: mean squared error of the noise on 400 "
            "unseen images with frozen noise, of the moving average; no FID. Before training it is "
            f"{mean_and_spread(start)}. Bold: the learning rate with the smaller objective on 200 validation images, "
            f"seed 0. Step: time of a step over that of full fine-tuning beside it, median of {turns} turns, "
            f"{torch.get_num_threads()} thread(s). Commit {commit()}.\n\n{command_block(__doc__)}\n\n"
            "| method | learning rate | objective | trainable | stored KiB | step |\n|---|---|---|---|---|---|\n"
            + "\n".join(lines)
        )


def _step(model: DiffusionAdaptation, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]) -> None:
    model.deterministic_objective(batch).backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=50)
    options = parser.parse_args()
    # of Lightning: few loader processes, a logging interval above a pass's batches, modules in eval mode
    disable_possible_user_warnings()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(Benchmark(options.cache.resolve(), options.out.resolve(), options.seeds).page(options.turns))
