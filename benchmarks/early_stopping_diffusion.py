"""Does DVAR's rule stop personalization where a concept is learned, and what of its frozen batch does that need?

python -m benchmarks.early_stopping_diffusion --out FOLDER

Each run goes to the end of its budget; where a criterion would have stopped it follows from the curves, since tracking
leaves a training bit-identical (tests/callbacks/test_loss_tracking_early_stopping.py).
"""

import argparse
import csv
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity

from benchmarks.diffusion_world import SENTENCES, Judge, build
from benchmarks.runs import command_block, commit, mean_and_spread
from callbacks.loss_tracking_early_stopping import PRESETS
from lightning_modules import Personalization
from pocketgan.cli import main
from pocketgan.loss_tracking import values_until_stop

STEPS, BATCH, SHORT = 500, 2, 100
SCORED_EVERY, SAMPLES, SAMPLING_STEPS, GUIDANCE = 25, 16, 15, 3.0
# the judge's cosine every 50 steps; tolerance and patience as DVAR has them
CLIP_EVERY, CLIP_RULE = (
    50,
    {"textual_inversion": (0.02, 6), "dreambooth_lora": (0.04, 3), "custom_diffusion": (0.02, 6)},
)
# for networks of this size, chosen once and not searched
RATES = {"textual_inversion": 1e-2, "dreambooth_lora": 2e-3, "custom_diffusion": 5e-4}
RULE = (50, 0.15)
# each method's own window as a share of its own budget, times ours; its threshold
BUDGETS = {"textual_inversion": 6100, "dreambooth_lora": 1000, "custom_diffusion": 500}
FREED = ("latents", "captions", "noise", "images", "timesteps", "all")


class Recorder(Callback):
    """Scores samples on the way and, if asked, evaluates the objective with parts of the frozen batch drawn anew.

    Args:
        judge: The judge's weights.
        semi_deterministic: Whether to evaluate what is frozen part by part.
    """

    def __init__(self, judge: Path, semi_deterministic: bool) -> None:
        self.judge, self.semi_deterministic = Judge(judge), semi_deterministic
        self.step, self.seconds = 0, 0.0
        self.concept: dict[int, float] = {}
        self.image: dict[int, float] = {}
        self.freed: dict[str, list[float]] = {name: [] for name in FREED} if semi_deterministic else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.begun = time.perf_counter()
        self.photos = self.judge(data.photos)[torch.arange(SAMPLES) % len(data.photos)]
        # all photos and their mirror images, of which "images" draws
        self.moments = torch.cat((data._moments["photo"], data._moments["mirrored"]))
        with isolate_rng(), torch.no_grad():
            torch.manual_seed(0)
            self.batch = {"moments": self.moments[:4], "prompt": data.prompts[:4]}
            self.frozen = pl_module.frozen(self.batch)  # type: ignore[operator]
            self.prompts = data.prompts

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Personalization)
        begun = time.perf_counter()
        with isolate_rng(), torch.no_grad():
            if self.step % SCORED_EVERY == 0:
                self._score(trainer, pl_module)
            for number, name in enumerate(self.freed):
                torch.manual_seed(10_000 * self.step + number)
                batch = dict(self.frozen)
                if name in {"images", "all"}:
                    batch["latents"] = pl_module._latents(self.moments[torch.randint(len(self.moments), (4,))])
                elif name == "latents":
                    batch["latents"] = pl_module._latents(self.batch["moments"])
                if name in {"noise", "all"}:
                    batch["noise"] = torch.randn_like(batch["noise"])
                if name in {"timesteps", "all"}:
                    batch["timesteps"] = torch.randperm(1000)[:4]
                if name in {"captions", "all"}:
                    batch["prompt"] = [self.prompts[int(place)] for place in torch.randint(len(self.prompts), (4,))]
                self.freed[name].append(float(pl_module.deterministic_objective(batch)))
        self.step += 1
        self.seconds += time.perf_counter() - begun

    def _score(self, trainer: Trainer, module: Personalization) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pictures = module.sample(
            [data.prompts[0]] * SAMPLES, range(37, 37 + SAMPLES), SAMPLING_STEPS, GUIDANCE, data.size
        )
        self.concept[self.step] = self.judge.concept_score(pictures)
        self.image[self.step] = float(cosine_similarity(self.judge(pictures), self.photos).mean())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Personalization)
        with isolate_rng(), torch.no_grad():
            self._score(trainer, pl_module)
        found = {
            "concept": self.concept,
            "image": self.image,
            "freed": self.freed,
            "recorder_seconds": self.seconds,
            "seconds": time.perf_counter() - self.begun,
        }
        (Path(trainer.default_root_dir) / "recorded.json").write_text(json.dumps(found))


def train(world: Path, folder: Path, method: str, seed: int, steps: int, free: bool) -> dict[str, Any]:
    """Train once, or find it; what the recorder noted. The frozen batch is freed part by part on request."""
    file = folder / "recorded.json"
    if not file.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        tracking = {"window": RULE[0], "threshold": 0.0, "images": 4, "seed": seed}
        recorder = {"judge": str(world / "judge.safetensors"), "semi_deterministic": free}
        callbacks = [
            {"class_path": "LossTrackingEarlyStopping", "init_args": tracking},
            {"class_path": "benchmarks.early_stopping_diffusion.Recorder", "init_args": recorder},
        ]
        words = [
            "fit",
            f"-c=configs/personalization/{method}.yaml",
            f"--seed_everything={seed}",
            f"--model.pipeline={world / 'pipeline'}",
            "--model.method.initializer_token=ring",
            f"--model.optimizer.lr={RATES[method]}",
            f"--data.root={world / 'photos'}",
            "--data.size=16",
            "--data.rescale=false",
            # the sentences that the world's text encoder knows
            f"--data.templates={json.dumps(SENTENCES)}",
            f"--budget.images={steps * BATCH}",
            f"--trainer.default_root_dir={folder}",
            "--trainer.precision=32-true",
            "--trainer.accelerator=cpu",
            f"--trainer.val_check_interval={steps}",
            "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--early_stopping=null",
            f"--trainer.callbacks={json.dumps(callbacks)}",
        ]
        if method == "custom_diffusion":
            words += [
                f"--data.class_root={world / 'class_photos'}",
                "--data.class_prompt=a photo of a ring",
                "--data.phrase=<concept>",
            ]
        main(words)
    recorded: dict[str, Any] = json.loads(file.read_text())
    for name in ("concept", "image"):
        recorded[name] = {int(step): value for step, value in recorded[name].items()}
    return recorded


def run(world: Path, out: Path, method: str, seed: int) -> dict[str, Any]:
    """Train to the end of the budget, or find it; its curves."""
    folder = out / f"{method}_{seed}"
    recorded = train(world, folder, method, seed, STEPS, free=True)
    tracked = json.loads((folder / "loss_tracking.json").read_text())
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    rest = recorded["seconds"] - recorded["recorder_seconds"]
    return {
        "objective": np.array(tracked["objective"]),
        "train": np.array(losses),
        "concept": recorded["concept"],
        "image": recorded["image"],
        "freed": {name: np.array(values) for name, values in recorded["freed"].items()},
        "cost": tracked["tracking_seconds"] / rest,
    }


def image_stop_of(scores: dict[int, float], tolerance: float, patience: int) -> int | None:
    """Steps done when CLIP-s stops, on the judge's cosine."""
    best, failures = None, 0
    for step in range(CLIP_EVERY, STEPS + 1, CLIP_EVERY):
        if best is None or scores[step] > best + tolerance:
            best, failures = scores[step], 0
        else:
            failures += 1
            if failures > patience:
                return step
    return None


def score_at(world: Path, out: Path, method: str, seed: int, scores: dict[int, float], stop: int | None) -> float:
    """The concept score at a stop, by a run that ends there; at the end of the budget if there is none."""
    step = stop or STEPS
    if step in scores:
        return scores[step]
    short: dict[int, float] = train(world, out / f"{method}_{seed}_{step}", method, seed, step, free=False)["concept"]
    if any(short[earlier] != scores[earlier] for earlier in range(0, step, SCORED_EVERY)):
        raise RuntimeError(f"{method}_{seed}_{step} is not the beginning of the whole run")
    return short[step]


def rho(values: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    """Spearman correlation of step and value."""
    return float(spearmanr(np.arange(len(values)), values).statistic)


def page(world: Path, out: Path, seeds: int) -> str:
    """The committed Markdown."""
    found = {method: [run(world, out, method, seed) for seed in range(seeds)] for method in RATES}
    correlations, stops = [], []
    for method, runs in found.items():
        half = STEPS // 2
        columns = [
            [rho(one["objective"]) for one in runs],
            [rho(one["objective"][:half]) for one in runs],
            [rho(one["train"]) for one in runs],
            [rho(one["train"][:half]) for one in runs],
            [one["cost"] for one in runs],
        ]
        correlations.append(f"| {method} | " + " | ".join(mean_and_spread(column, 3) for column in columns) + " |")
        own_window, threshold, _ = PRESETS[method]  # type: ignore[index]
        window = round(own_window / BUDGETS[method] * STEPS)
        tolerance, patience = CLIP_RULE[method]
        criteria = {
            f"objective, {RULE[0]} and {RULE[1]}": [values_until_stop(one["objective"], *RULE) for one in runs],
            f"objective, own preset scaled: {window} and {threshold}": [
                values_until_stop(one["objective"], window, threshold) for one in runs
            ],
            f"training loss, {RULE[0]} and {RULE[1]}": [values_until_stop(one["train"], *RULE) for one in runs],
            f"judge's image score, {tolerance} and {patience}": [
                image_stop_of(one["image"], tolerance, patience) for one in runs
            ],
            f"{SHORT} steps": [SHORT] * seeds,
        }
        for name, steps in criteria.items():
            at = [
                score_at(world, out, method, seed, one["concept"], stop)
                for seed, (one, stop) in enumerate(zip(runs, steps, strict=True))
            ]
            listed = ", ".join(str(step or "never") for step in steps)
            stops.append(f"| {method} | {name} | {listed} | {mean_and_spread(at, 3)} |")
        best = [max(one["concept"], key=one["concept"].__getitem__) for one in runs]
        stops.append(
            f"| {method} | none: {STEPS} steps | | {mean_and_spread([one['concept'][STEPS] for one in runs], 3)} |"
        )
        stops.append(
            f"| {method} | before training / best of all scored steps | 0 / {', '.join(map(str, best))} | "
            f"{mean_and_spread([one['concept'][0] for one in runs], 3)} / "
            f"{mean_and_spread([one['concept'][step] for one, step in zip(runs, best, strict=True)], 3)} |"
        )
    ablation = []
    for method, runs in found.items():
        for name in ("nothing", *FREED):
            curves = [one["objective"] if name == "nothing" else one["freed"][name] for one in runs]
            cells = [
                mean_and_spread([rho(curve) for curve in curves], 3),
                mean_and_spread([float(curve[-50:].std()) for curve in curves], 5),
                ", ".join(str(values_until_stop(curve, *RULE) or "never") for curve in curves),
            ]
            ablation.append(f"| {method} | {name} | " + " | ".join(cells) + " |")
    recipe = json.loads((world / "recipe.json").read_text())
    rates = ", ".join(f"{rate:g} ({name})" for name, rate in RATES.items())
    return "\n".join(
        [
            "# Does DVAR's rule stop personalization where a concept is learned?",
            "",
            f"World `{world.name}` of benchmarks/diffusion_world.py: a Stable Diffusion pipeline for 16 px shapes "
            f"({recipe['unet_parameters']:,} parameters in the U-Net, {recipe['cpu_seconds']:.0f} CPU seconds of "
            f"training). Concept: yellow ring, never seen together; {recipe['photos']} photos, initial word `ring`. "
            f"{STEPS} steps of batch {BATCH}, AdamW at {rates}, "
            f"{seeds} seeds: mean ± standard deviation. Frozen batch of 4, looked at before every step. Custom "
            "Diffusion with prior preservation, without its scaling (16 px are too few for the mask). Concept score: "
            "the judge's "
            f"probability of yellow times that of ring, mean of {SAMPLES} samples ({SAMPLING_STEPS} DDIM steps, "
            f"guidance {GUIDANCE:g}), measured every {SCORED_EVERY} steps and at each stop. "
            f"Commit {commit()}.",
            "",
            command_block(__doc__),
            "",
            "## How informative is which loss? Spearman correlation with the step",
            "",
            "| method | frozen objective | its first half | training loss | its first half | tracking, of the time |",
            "|---|---|---|---|---|---|",
            *correlations,
            "",
            "## Where each criterion stops",
            "",
            f"The judge's image score (cosine of samples and photos, every {CLIP_EVERY} steps, tolerance and patience) "
            "stands for CLIP's, whose weights are not at hand. `Never`: the run goes to its end.",
            "",
            "| method | criterion | steps, by seed | concept score |",
            "|---|---|---|---|",
            *stops,
            "",
            "## What must be frozen",
            "",
            f"One part drawn anew at each evaluation; the rule is {RULE[0]} and {RULE[1]}.",
            "",
            "| method | drawn anew | Spearman correlation | deviation of the last 50 | stop, by seed |",
            "|---|---|---|---|---|",
            *ablation,
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    place = options.out.resolve()
    print(page(build(place), place, options.seeds))
