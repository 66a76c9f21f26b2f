"""Does loss tracking end an adaptation in time? Images, seconds and quality with and without it.

python -m benchmarks.early_stopping --pairs POOL --bases FOLDER --out FOLDER --picture docs/images/loss_tracking.png

FOLDER of the bases is the one that benchmarks/e2gan.py made.
"""

import argparse
import csv
import json
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.runs import BATCH, SETTING, Run, command_block, commit, mean_and_spread, train_all
from callbacks.loss_tracking_early_stopping import PRESETS, TRACKING_FILE, variance_ratio
from lightning_modules import PairedGAN
from pocketgan.cli import main

# concept and base of the runs on which window and threshold are chosen; none of them is reported on afterwards
CALIBRATION = (("style_20", 0), ("style_23", 1), ("style_25", 2))
HELD_OUT, SEEDS, IMAGES, VALIDATED = ("style_18", "style_19", "style_21", "style_22", "style_24"), range(3), 3_200, 25
# a value costs half a training step: one in EVERY batches is taken
EVERY, WINDOWS = 4, (8, 12, 20, 30, 40)
THRESHOLDS = (0.1, 0.05, 0.01, 1e-3, 3e-4, 1e-4, 5e-5, 3e-5, 1e-5)
COLUMNS = ("reconstruction", "ssim", "kid_lite0")
TOLERATED = 0.03  # excess of L1 over the full budget's, mean over the calibration runs, that a choice may have


def words(pairs: Path, bases: Path, concept: str, seed: int) -> tuple[str, ...]:
    return (
        f"--seed_everything={seed}",
        f"--data.root={pairs}",
        f"--data.concepts=[{concept}]",
        f"--model.base={bases / f'base_clustered_{seed}'}",
    )


def callbacks(**options: Any) -> str:
    tracking = {"class_path": "LossTrackingEarlyStopping", "init_args": options}
    return f"--trainer.callbacks={json.dumps([{'class_path': 'AdapterWriter'}, tracking])}"


def calibrate(pairs: Path, bases: Path, out: Path, concept: str, seed: int) -> dict[str, Any]:
    """A run to its whole budget that notes both generators' objectives, the training loss and the validations."""
    folder = out / f"calibration_{concept}_{seed}"
    file = folder / "curves.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(1)
    raw: list[float] = []
    averaged = PairedGAN.deterministic_objective

    def both(self: PairedGAN, batch: dict[str, Any]) -> torch.Tensor:
        fake = self.generator(batch["photo"], self.prompt_tokens(batch))
        raw.append(self.reconstruction_loss(fake, batch["edit"]).item())
        return averaged(self, batch)

    PairedGAN.deterministic_objective = both  # type: ignore[method-assign]
    try:
        main(
            [
                "fit",
                "-c=configs/lora_adaptation/small.yaml",
                *SETTING,
                *words(pairs, bases, concept, seed),
                callbacks(window=2, threshold=0, every_n_batches=1),
                f"--budget.images={IMAGES}",
                f"--trainer.val_check_interval={VALIDATED}",
                "--trainer.log_every_n_steps=1",
                f"--trainer.default_root_dir={folder}",
            ]
        )
    finally:
        PairedGAN.deterministic_objective = averaged  # type: ignore[method-assign]
    with (folder / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    curves = {
        "averaged": json.loads((folder / TRACKING_FILE).read_text())["objective"],
        # the weights before a validation are looked at, too
        "raw": [value for place, value in enumerate(raw) if place % (VALIDATED + 1) < VALIDATED],
        "training": [float(row["train/reconstruction"]) for row in rows if row["train/reconstruction"]],
        "L1": [float(row["val/reconstruction"]) for row in rows if row["val/reconstruction"]],
    }
    file.write_text(json.dumps(curves))
    return curves


def stop_of(history: list[float], window: int, threshold: float) -> int | None:
    """The batch in which the rule ends a run, if it looks at one value in EVERY."""
    values = np.array(history[::EVERY])
    steps = (t for t in range(len(values)) if variance_ratio(values[: t + 1], window) < threshold)
    stop = next(steps, None)
    return None if stop is None else EVERY * stop + 1


def excess(curves: dict[str, Any], stop: int | None) -> float:
    """L1 at the validation after a stop over that at the end, less 1."""
    place = len(curves["L1"]) - 1 if stop is None else min(-(-stop // VALIDATED), len(curves["L1"])) - 1
    return curves["L1"][place] / curves["L1"][-1] - 1


def grid(curves: list[dict[str, Any]], kind: str) -> tuple[dict[tuple[int, float], str], tuple[int, float] | None]:
    """Cells of the table, and the choice: the earliest mean stop whose mean excess of L1 is within bounds."""
    cells, chosen, earliest = {}, None, float("inf")
    for window in WINDOWS:
        for threshold in THRESHOLDS:
            stops = [stop_of(each[kind], window, threshold) for each in curves]
            more = [excess(each, stop) for each, stop in zip(curves, stops, strict=True)]
            named = "/".join("–" if stop is None else str(stop) for stop in stops)
            cells[window, threshold] = f"{named} ({statistics.mean(more):+.1%}, {max(more):+.1%})"
            mean = statistics.mean(IMAGES / BATCH if stop is None else stop for stop in stops)
            if statistics.mean(more) <= TOLERATED and mean < earliest:
                chosen, earliest = (window, threshold), mean
    return cells, chosen


def grid_table(cells: dict[tuple[int, float], str]) -> str:
    head = (
        "| window | "
        + " | ".join(f"{threshold:g}" for threshold in THRESHOLDS)
        + " |\n|---|"
        + "---|" * len(THRESHOLDS)
    )
    rows = ["| " + " | ".join([str(w), *(cells[w, t] for t in THRESHOLDS)]) + " |" for w in WINDOWS]
    return "\n".join([head, *rows])


def draw(curves: list[dict[str, Any]], file: Path) -> None:
    """The curves of the calibration runs, with the stop."""
    window, threshold, _ = PRESETS["adapter"]
    figure, axes = plt.subplots(3, len(curves), figsize=(11, 7.5), sharex=True, layout="constrained")
    for column, ((concept, seed), each) in enumerate(zip(CALIBRATION, curves, strict=True)):
        values = np.array(each["averaged"][::EVERY])
        ratios = [variance_ratio(values[:t], window) for t in range(1, len(values) + 1)]
        axes[0, column].plot(each["training"], color="tab:gray", linewidth=0.5, label="training L1")
        axes[0, column].plot(each["averaged"], color="tab:blue", label="L1 on the frozen pairs")
        axes[1, column].semilogy(EVERY * np.arange(len(ratios)), ratios, color="tab:orange", label="ratio of variances")
        axes[1, column].axhline(threshold, color="black", linewidth=0.5)
        axes[2, column].plot(
            VALIDATED * np.arange(1, len(each["L1"]) + 1), each["L1"], color="tab:green", label="L1 on held-out photos"
        )
        stop = stop_of(each["averaged"], window, threshold)
        for row in axes[:, column]:
            if stop is not None:
                row.axvline(stop, color="tab:red", linewidth=1)
        axes[0, column].set_title(f"{concept}, base {seed}")
        axes[2, column].set_xlabel("batches of 4")
    for row in axes[:, 0]:
        row.legend()
    figure.savefig(file, dpi=110)


def page(pairs: Path, bases: Path, out: Path, picture: Path, processes: int) -> str:
    """Calibrate, train the pairs of runs, and write the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    curves = [calibrate(pairs, bases, out, concept, seed) for concept, seed in CALIBRATION]
    draw(curves, picture)
    averaged_cells, chosen = grid(curves, "averaged")
    raw_cells, raw_chosen = grid(curves, "raw")
    window, threshold, every = PRESETS["adapter"]
    adaptation = partial(Run, config="configs/lora_adaptation/small.yaml", images=(IMAGES,))
    cells = [(concept, seed) for concept in HELD_OUT for seed in SEEDS]
    full, tracked = (
        {
            cell: adaptation(
                folder=out / f"{name}_{cell[0]}_{cell[1]}",
                arguments=(*words(pairs, bases, *cell), with_callbacks),
                may_stop_early=name == "tracked",
            )
            for cell in cells
        }
        for name, with_callbacks in (
            ("full", "--trainer.callbacks=[AdapterWriter]"),
            ("tracked", callbacks(preset="adapter")),
        )
    )
    # in turn, so that a change of the machine's speed meets both
    train_all([runs[cell] for cell in cells for runs in (full, tracked)], processes)
    tracking = {cell: json.loads((run.folder / TRACKING_FILE).read_text()) for cell, run in tracked.items()}
    rows = {cell: (full[cell].result()[-1], tracked[cell].result()[-1]) for cell in cells}
    seconds = {
        cell: (whole["seconds"], part["seconds"] + tracking[cell]["tracking_seconds"])
        for cell, (whole, part) in rows.items()
    }
    spread_of = {concept: [rows[concept, seed][0]["kid_lite0"] for seed in SEEDS] for concept in HELD_OUT}
    lines = []
    for concept in HELD_OUT:
        found = [rows[concept, seed] for seed in SEEDS]
        columns = [mean_and_spread([row[side][column] for row in found]) for column in COLUMNS for side in (0, 1)]
        stops = "/".join(f"{part['images']:,.0f}" for _, part in found)
        lines.append(f"| {concept} | {stops} | " + " | ".join(columns) + " |")
    fewer = [whole["images"] / part["images"] for whole, part in rows.values()]
    worse = [part["reconstruction"] / whole["reconstruction"] - 1 for whole, part in rows.values()]
    inside = sum(
        min(spread_of[concept]) <= part["kid_lite0"] <= max(spread_of[concept])
        for (concept, _), (_, part) in rows.items()
    )
    better = sum(part["kid_lite0"] <= max(spread_of[concept]) for (concept, _), (_, part) in rows.items())
    interval = sum(part["kid_lite0"] <= whole["kid_lite0_high"] for whole, part in rows.values())
    quicker = [whole / part for whole, part in seconds.values()]
    share = [tracking[cell]["tracking_seconds"] / seconds[cell][1] for cell in cells]
    steps = range(len(curves[0]["averaged"]))
    rho = {
        kind: [spearmanr(steps, each[kind]).statistic for each in curves] for kind in ("averaged", "raw", "training")
    }
    on_training = [stop_of(each["training"], window, threshold) for each in curves]
    stopped = sum(curve["stopped"] for curve in tracking.values())
    return (
        "# Does loss tracking end an adaptation in time?\n\n"
        f"{command_block(__doc__)}\n\n"
        f"64 px, width 16, batch {BATCH}, LoRA of small.yaml on the clustered bases of benchmarks/e2gan.md; the full "
        f"budget is {IMAGES:,} images, {IMAGES // BATCH} batches. Preset `adapter`: window {window}, "
        f"threshold {threshold:g}, a value every {every} batches, 8 frozen training pairs. "
        f"N = {next(iter(rows.values()))[0]['images_per_concept']:.0f} test photos a concept. Commit {commit()}.\n\n"
        f"## On {len(HELD_OUT)} held-out concepts, {len(SEEDS)} seeds\n"
        f"{stopped} of {len(cells)} runs were stopped, with {mean_and_spread(fewer, 1)} "
        f"times fewer images (least {min(fewer):.1f}) and in {statistics.median(quicker):.1f} times less time (median; "
        f"training steps and tracking, {processes} runs side by side). L1 is {statistics.mean(worse):+.1%} ± "
        f"{statistics.stdev(worse):.1%} against the full budget's (worst {max(worse):+.1%}; "
        f"{sum(value <= TOLERATED for value in worse)} of {len(cells)} runs within {TOLERATED:.0%}). "
        f"kid_lite0 lies inside the "
        f"range of the full runs' seeds in {inside}, at or below its upper end in {better}, at or below the full "
        f"run's own 95 % bound over images in {interval} of {len(cells)}. Tracking took {statistics.mean(share):.0%} "
        f"± {statistics.stdev(share):.0%} of the stopped runs' time.\n\n"
        "| concept | images at the stop, by seed | "
        + " | ".join(f"{column}, {side}" for column in COLUMNS for side in ("full budget", "stopped"))
        + " |\n|---|---|"
        + "---|" * 6
        + "\n"
        + "\n".join(lines)
        + "\n\n## How window and threshold were chosen\n"
        f"One value in {EVERY} batches. On {', '.join(f'{concept} (base {seed})' for concept, seed in CALIBRATION)}, "
        "which are not reported above: the batch at which each pair of numbers stops the three runs, in "
        "brackets mean and worst L1 on "
        "validation photos against that of the full budget. – is never, the whole budget. Chosen is the "
        "earliest mean stop of "
        f"all three with at most {TOLERATED:.0%}: {chosen}.\n\n"
        f"Moving average of the generator:\n\n{grid_table(averaged_cells)}\n\n"
        f"The generator itself (the rule would choose {raw_chosen}):\n\n{grid_table(raw_cells)}\n\n"
        "Spearman's correlation of step with the frozen objective, moving average: "
        f"{mean_and_spread(rho['averaged'], 2)}; the generator itself: {mean_and_spread(rho['raw'], 2)}; with the "
        f"training L1: {mean_and_spread(rho['training'], 2)}. The preset on the training L1 stops at: "
        f"{', '.join('never' if stop is None else str(stop) for stop in on_training)}.\n\n"
        f"![curves](../docs/images/{picture.name})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "bases", "out", "picture"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folders = (options.pairs.resolve(), options.bases.resolve(), options.out.resolve(), options.picture.resolve())
    print(page(*folders, options.processes))
