"""Does training on crops reach a diffusion model sooner? Noise objective and placement at equal CPU seconds.

python -m benchmarks.patch_diffusion --out FOLDER --picture docs/images/patch_diffusion.png

The pictures are drawn here, 32 px: a red disc in the upper left, a green square in the upper right, a blue disc in the
middle below, each with a place, size and shade of its own, on the ground of one of two classes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor

from benchmarks.runs import command_block, commit, mean_and_spread
from lightning_modules import DiffusionTraining
from pocketgan import class_pipeline
from pocketgan.images import to_image
from pocketgan.losses import DiffusionLoss, MinSNRWeighting
from pocketgan.patch_diffusion import PatchCrop
from pocketgan.report import comparison_sheet

SIDE, SEEDS, BATCH, PICTURES, HELD_OUT = 32, range(3), 16, 2048, 128
SECONDS, MEASURED = 240, 8  # of one core for each model, and how often it is looked at
SAMPLES, SAMPLING_STEPS = 64, 25
# in units of the side, where the middle of each colour lies: left, top, right, bottom
PLACES = {"red": (0.1, 0.1, 0.45, 0.45), "green": (0.55, 0.1, 0.9, 0.45), "blue": (0.3, 0.55, 0.7, 0.9)}
MODELS = {"whole pictures": None, "crops": PatchCrop()}


def draw(label: int, random: torch.Generator) -> Tensor:
    """One picture (3, 32, 32) in [-1, 1]."""
    fine = 4 * SIDE  # drawn finer and averaged, or edges would be stairs
    y, x = torch.meshgrid(torch.arange(fine) + 0.5, torch.arange(fine) + 0.5, indexing="ij")
    picture = torch.full((3, fine, fine), 0.15 if label else 0.6) + 0.1 * torch.rand((), generator=random)
    for channel, (left, top, right, bottom) in enumerate(PLACES.values()):
        across, down, size, shade = torch.rand(4, generator=random).tolist()
        radius = (0.09 + 0.04 * size) * fine
        centre = ((left + across * (right - left)) * fine, (top + down * (bottom - top)) * fine)
        far = torch.stack(((x - centre[0]).abs(), (y - centre[1]).abs()))
        inside = far.amax(0) < 0.85 * radius if channel == 1 else far.norm(dim=0) < radius
        paint = torch.full((3, 1, 1), 0.1)
        paint[channel] = 0.8 + 0.2 * shade
        picture = torch.where(inside, paint, picture)
    return F.avg_pool2d(picture, 4).clamp(0, 1) * 2 - 1


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, 32, 32) of both classes in turn, and labels (N,)."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    return torch.stack([draw(int(label), random) for label in labels]), labels


def placed(made: Tensor) -> float:
    """Share of pictures that hold each colour once in its place: enough of it, its middle where it was drawn."""
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    good = torch.ones(len(made), dtype=torch.bool)
    for channel, (left, top, right, bottom) in enumerate(PLACES.values()):
        others = [other for other in range(3) if other != channel]
        mask = made[:, channel] - made[:, others].amax(1) > 0.6
        area = mask.sum((1, 2))
        middle_x, middle_y = ((mask * grid).sum((1, 2)) / area.clamp(min=1) / SIDE for grid in (x, y))
        spread = ((mask * ((x / SIDE - middle_x[:, None, None]) ** 2 + (y / SIDE - middle_y[:, None, None]) ** 2))
                  .sum((1, 2)) / area.clamp(min=1)).sqrt()  # fmt: skip
        slack = 1 / SIDE
        good &= (area > 12) & (area < 80) & (spread < 0.14)
        good &= (middle_x > left - slack) & (middle_x < right + slack)
        good &= (middle_y > top - slack) & (middle_y < bottom + slack)
    return good.float().mean().item()


def make_model(crop: PatchCrop | None, seed: int) -> DiffusionTraining:
    """Both read five channels and begin at the same weights: whole pictures come with their whole grid."""
    torch.manual_seed(seed)
    network = UNet2DModel(
        sample_size=SIDE,
        in_channels=5,
        out_channels=3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=2,
    )
    optimizer = lambda weights: torch.optim.Adam(weights, lr=1e-3)  # noqa: E731
    whole = PatchCrop({1: 1.0})
    return DiffusionTraining(network, DiffusionLoss(MinSNRWeighting()), optimizer, crop or whole, 2_000)


def sample(model: DiffusionTraining, count: int = SAMPLES) -> Tensor:
    """Pictures of both classes in turn."""
    pipeline = model.pipeline(["bright", "dark"], SIDE)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    return pipeline([number % 2 for number in range(count)], None, 1.0, SAMPLING_STEPS, generators)


def without_coordinates(act: Callable[[], Tensor]) -> Tensor:
    """The same with a grid of zeros."""
    kept = class_pipeline.with_coordinates
    class_pipeline.with_coordinates = lambda pictures: F.pad(pictures, (0, 0, 0, 0, 0, 2))
    try:
        return act()
    finally:
        class_pipeline.with_coordinates = kept


def race(seed: int) -> dict[str, Any]:
    """Train both side by side, each step by the one that has used less time, and look at them on the way."""
    made, labels = pictures(PICTURES, 1)
    unseen, unseen_labels = pictures(HELD_OUT, 2)
    names = list(MODELS)
    models = {name: make_model(crop, seed) for name, crop in MODELS.items()}
    optimizers = {name: model.configure_optimizers() for name, model in models.items()}
    frozen = models[names[0]].drawn({"latents": unseen, "label": unseen_labels}, torch.Generator().manual_seed(9))
    used, steps = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    order = {name: torch.Generator().manual_seed(seed) for name in names}
    while min(used.values()) < SECONDS:
        name = min(names, key=used.__getitem__)
        model, optimizer = models[name], optimizers[name]
        begun = time.process_time()
        chosen = torch.randint(PICTURES, (BATCH,), generator=order[name])
        assert model.patch_crop is not None
        crops, grids, places = model.patch_crop(made[chosen])
        batch = {"latents": crops, "coordinates": grids, "label": labels[chosen][places]}
        model.objective(model.drawn(batch)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        model.images_seen += BATCH
        model.update_average(BATCH)
        used[name] += time.process_time() - begun
        steps[name] += 1
        if used[name] >= SECONDS * (len(curves[name]) + 1) / MEASURED:
            with torch.no_grad():
                objective = model.objective(frozen, averaged=True).mean().item()
            curves[name].append({"seconds": used[name], "steps": steps[name], "objective": objective})
    found: dict[str, Any] = {"curves": curves}
    shown = {}
    for name, model in models.items():
        samples = sample(model)
        blind = without_coordinates(lambda model=model: sample(model))
        found[name] = {"placed": placed(samples), "without coordinates": placed(blind)}
        shown[name], shown[f"{name}, no grid"] = samples[:8], blind[:8]
    found["drawn"] = placed(unseen)
    found["shown"] = {"drawn": unseen[:8], **shown}
    return found


def page(out: Path, picture: Path) -> str:
    """Race for each seed, and write the Markdown."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    races = []
    for seed in SEEDS:
        file = out / f"{seed}.pt"
        if not file.exists():
            torch.save(race(seed), file)
        races.append(torch.load(file, weights_only=True))
    columns = {name: [to_image(one) for one in made[:4]] for name, made in races[0]["shown"].items()}
    comparison_sheet(columns, 6 * SIDE).save(picture)
    rows = []
    for place in range(MEASURED):
        seconds = SECONDS * (place + 1) / MEASURED
        cells = [
            mean_and_spread([each["curves"][name][place][column] for each in races], digits)
            for name in MODELS
            for column, digits in (("steps", 0), ("objective", 4))
        ]
        rows.append(f"| {seconds:.0f} | " + " | ".join(cells) + " |")
    last = {name: [each["curves"][name][-1] for each in races] for name in MODELS}
    pace = [
        one["steps"] / one["seconds"] / (other["steps"] / other["seconds"])
        for one, other in zip(last["crops"], last["whole pictures"], strict=True)
    ]
    worse = [
        one["objective"] / other["objective"] - 1
        for one, other in zip(last["crops"], last["whole pictures"], strict=True)
    ]
    scores = "\n".join(
        f"| {name} | "
        + " | ".join(
            mean_and_spread([each[name][way] for each in races], 2) for way in ("placed", "without coordinates")
        )
        + " |"
        for name in MODELS
    )
    return (
        "# Does training on crops reach a diffusion model sooner?\n\n"
        f"{command_block(__doc__)}\n\n"
        f"{SIDE} px, {PICTURES:,} drawn pictures of two classes, a U-Net of "
        f"{sum(map(torch.numel, make_model(None, 0).network.parameters())):,} weights, noise prediction with Min-SNR, "
        f"batch {BATCH}, Adam 1e-3, crops in the paper's shares {json.dumps(PatchCrop().shares)}. Both begin at the "
        f"same weights and have {SECONDS} seconds of one core, spent in turn; seeds {len(SEEDS)}. Objective: on noise "
        f"of {HELD_OUT} unseen whole pictures, by the moving average. Commit {commit()}.\n\n"
        "| CPU s | steps, whole | objective, whole | steps, crops | objective, crops |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\nCrops make {mean_and_spread(pace, 2)} times as many steps a second; at the end their objective is "
        f"{statistics.mean(worse):+.1%} ± {statistics.stdev(worse):.1%} against that of whole pictures.\n\n"
        f"Share of {SAMPLES} samples ({SAMPLING_STEPS} steps of DDIM) with each colour once in its place; of unseen "
        f"drawn pictures it is {races[0]['drawn']:.2f}:\n\n"
        f"| trained on | with coordinates | with a grid of zeros |\n|---|---|---|\n{scores}\n\n"
        f"![samples](../docs/images/{picture.name})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    print(page(options.out.resolve(), options.picture.resolve()))
