r"""Does loss tracking end an adaptation in time? Images, seconds and quality with and without it.

python -m benchmarks.early_stopping --pairs POOL --bases FOLDER --large_base BASE --out FOLDER \
    --picture docs/images/loss_tracking.png

FOLDER of the bases is the one that benchmarks/e2gan.py made, BASE the run of benchmarks/e2gan_pictures.py.
"""

import argparse
import csv
import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.runs import BATCH, SETTING, Run, command_block, commit, mean_and_spread, train_all
from callbacks.loss_tracking_early_stopping import PRESETS
from lightning_modules import PairedGAN
from pocketgan.cli import main
from pocketgan.loss_tracking import values_until_stop, variance_ratio
from pocketgan.run_folder import TRACKING_FILE

# concept and base of the runs on which window and threshold are chosen; none of them is reported on afterwards
CALIBRATION = (("style_20", 0), ("style_23", 1), ("style_25", 2))
HELD_OUT = ("style_18", "style_19", "style_21", "style_22", "style_24")
CONFIG = "configs/lora_adaptation/small.yaml"
# a value costs half a training step or more: one in EVERY batches is taken
EVERY, VALIDATED, WINDOWS = 4, 20, (8, 12, 20, 30, 40)
THRESHOLDS = (0.05, 0.01, 1e-3, 3e-4, 1e-4, 5e-5, 3e-5, 2e-5, 1e-5, 5e-6, 2e-6)
COLUMNS = ("reconstruction", "ssim", "kid_lite0")
# excess of L1 over the full budget's, mean over the calibration runs of a scale, that a choice may have
TOLERATED = 0.03


@dataclass(frozen=True)
class Scale:
    """A size of picture and network.

    Attributes:
        size: Side of the pictures in pixels.
        width: Of the generator.
        images: The full budget.
        bases: Run folder of the base by seed of the adaptation.
        seeds: On which the rule is measured.
    """

    size: int
    width: int
    images: int
    bases: tuple[Path, ...]
    seeds: range

    @property
    def title(self) -> str:
        return f"{self.size} px, width {self.width}"

    @property
    def batches(self) -> int:
        return self.images // BATCH

    def words(self, pairs: Path, concept: str, seed: int) -> tuple[str, ...]:
        return (
            f"--seed_everything={seed}",
            f"--data.root={pairs}",
            f"--data.size={self.size}",
            f"--data.concepts=[{concept}]",
            f"--model.base={self.bases[seed]}",
        )


def calibrate(scale: Scale, pairs: Path, out: Path, concept: str, seed: int) -> dict[str, Any]:
    """A run to its whole budget that notes both generators' objectives, the training loss and the validations."""
    folder = out / f"calibration_{scale.size}_{concept}_{seed}"
    file = folder / "curves.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        return found
    shutil.rmtree(folder, ignore_errors=True)
    to_the_end = {
        "class_path": "LossTrackingEarlyStopping",
        "init_args": {"window": 2, "threshold": 0, "every_n_batches": EVERY},
    }
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
                f"-c={CONFIG}",
                *SETTING,
                *scale.words(pairs, concept, seed),
                f"--early_stopping={json.dumps(to_the_end)}",
                f"--budget.images={scale.images}",
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
        "raw": [value for place, value in enumerate(raw) if (place + 1) % (VALIDATED // EVERY + 1)],
        "training": [float(row["train/reconstruction"]) for row in rows if row["train/reconstruction"]][::EVERY],
        "L1": [float(row["val/reconstruction"]) for row in rows if row["val/reconstruction"]],
    }
    file.write_text(json.dumps(curves))
    return curves


def stop_of(history: list[float], window: int, threshold: float) -> int | None:
    """The batch in which the rule ends a run, from one value in EVERY."""
    values = values_until_stop(np.array(history), window, threshold)
    return None if values is None else EVERY * (values - 1) + 1


def excess(curves: dict[str, Any], stop: int | None) -> float:
    """L1 at the validation after a stop over that at the end, less 1."""
    place = len(curves["L1"]) - 1 if stop is None else min(-(-stop // VALIDATED), len(curves["L1"])) - 1
    return curves["L1"][place] / curves["L1"][-1] - 1


@dataclass(frozen=True)
class Cell:
    """What one window and threshold does to the calibration runs of one scale."""

    stops: list[int | None]
    excesses: list[float]
    batches: int

    @property
    def share(self) -> float:
        """Of the full budget, mean over the runs."""
        return statistics.mean(stop or self.batches for stop in self.stops) / self.batches

    def __str__(self) -> str:
        stops = "/".join("–" if stop is None else str(stop) for stop in self.stops)
        return f"{stops} ({statistics.mean(self.excesses):+.1%}, {max(self.excesses):+.1%})"


Grid = dict[tuple[int, float], Cell]


def grid(scale: Scale, curves: list[dict[str, Any]], kind: str) -> Grid:
    """A cell for each window and threshold."""
    cells = {}
    for window in WINDOWS:
        for threshold in THRESHOLDS:
            stops = [stop_of(each[kind], window, threshold) for each in curves]
            more = [excess(each, stop) for each, stop in zip(curves, stops, strict=True)]
            cells[window, threshold] = Cell(stops, more, scale.batches)
    return cells


def choice(grids: list[Grid]) -> tuple[int, float] | None:
    """The smallest share of the budgets, mean over the scales, with a mean excess of L1 within bounds at each."""
    allowed = [
        place for place in grids[0] if all(statistics.mean(cells[place].excesses) <= TOLERATED for cells in grids)
    ]
    return min(allowed, key=lambda place: statistics.mean(cells[place].share for cells in grids), default=None)


def grid_table(cells: Grid) -> str:
    head = (
        "| window | "
        + " | ".join(f"{threshold:g}" for threshold in THRESHOLDS)
        + " |\n|---|"
        + "---|" * len(THRESHOLDS)
    )
    rows = ["| " + " | ".join([str(w), *(str(cells[w, t]) for t in THRESHOLDS)]) + " |" for w in WINDOWS]
    return "\n".join([head, *rows])


def draw(curves: dict[Scale, list[dict[str, Any]]], file: Path) -> None:
    """The curves of the calibration runs, with the stop."""
    window, threshold, _ = PRESETS["adapter"]
    columns = [
        (f"{concept}, {scale.size} px", each)
        for scale, found in curves.items()
        for (concept, _), each in zip(CALIBRATION, found, strict=True)
    ]
    figure, axes = plt.subplots(3, len(columns), figsize=(3.2 * len(columns), 7.5), sharex="col", layout="constrained")
    for column, (title, each) in enumerate(columns):
        values, batches = np.array(each["averaged"]), EVERY * np.arange(len(each["averaged"]))
        ratios = [variance_ratio(values[:t], window) for t in range(1, len(values) + 1)]
        axes[0, column].plot(batches, each["training"], color="tab:gray", linewidth=0.5, label="training L1")
        axes[0, column].plot(batches, each["averaged"], color="tab:blue", label="L1 on the frozen pairs")
        axes[1, column].semilogy(batches, ratios, color="tab:orange", label="ratio of variances")
        axes[1, column].axhline(threshold, color="black", linewidth=0.5)
        axes[2, column].plot(
            VALIDATED * np.arange(1, len(each["L1"]) + 1), each["L1"], color="tab:green", label="L1 on held-out photos"
        )
        stop = stop_of(each["averaged"], window, threshold)
        for row in axes[:, column]:
            if stop is not None:
                row.axvline(stop, color="tab:red", linewidth=1)
        axes[0, column].set_title(title)
        axes[2, column].set_xlabel(f"batches of {BATCH}")
    for row in axes[:, 0]:
        row.legend()
    figure.savefig(file, dpi=110)


def runs_of(scale: Scale, pairs: Path, out: Path, name: str, *words: str) -> dict[tuple[str, int], Run]:
    return {
        (concept, seed): Run(
            folder=out / f"{name}_{scale.size}_{concept}_{seed}",
            config=CONFIG,
            arguments=(*scale.words(pairs, concept, seed), *words),
            images=(scale.images,),
            may_stop_early=name == "tracked",
        )
        for concept in HELD_OUT
        for seed in scale.seeds
    }


def measured(scale: Scale, full: dict[tuple[str, int], Run], tracked: dict[tuple[str, int], Run]) -> str:
    """Section of the page: the pairs of runs of one scale."""
    tracking = {cell: json.loads((run.folder / TRACKING_FILE).read_text()) for cell, run in tracked.items()}
    rows = {cell: (full[cell].result()[-1], tracked[cell].result()[-1]) for cell in full}
    seconds = {cell: part["seconds"] + tracking[cell]["tracking_seconds"] for cell, (_, part) in rows.items()}
    # by the stopped run's own steps: the machine's speed differs from run to run
    whole_seconds = {cell: part["seconds"] / part["images"] * scale.images for cell, (_, part) in rows.items()}
    range_of = {concept: [rows[concept, seed][0]["kid_lite0"] for seed in scale.seeds] for concept in HELD_OUT}
    spread = mean_and_spread if len(scale.seeds) > 1 else lambda values: f"{values[0]:.4f}"
    lines = []
    for concept in HELD_OUT:
        found = [rows[concept, seed] for seed in scale.seeds]
        columns = [spread([row[side][column] for row in found]) for column in COLUMNS for side in (0, 1)]
        stops = "/".join(f"{part['images']:,.0f}" for _, part in found)
        spent = "/".join(f"{seconds[concept, seed]:.0f}" for seed in scale.seeds)
        at_full = "/".join(f"{whole_seconds[concept, seed]:.0f}" for seed in scale.seeds)
        lines.append(f"| {concept} | {stops} | {at_full} | {spent} | " + " | ".join(columns) + " |")
    fewer = [whole["images"] / part["images"] for whole, part in rows.values()]
    all_together = len(rows) * scale.images / sum(part["images"] for _, part in rows.values())
    worse = [part["reconstruction"] / whole["reconstruction"] - 1 for whole, part in rows.values()]
    quicker = [whole_seconds[cell] / seconds[cell] for cell in rows]
    share = [tracking[cell]["tracking_seconds"] / seconds[cell] for cell in rows]
    stopped = sum(curve["stopped"] for curve in tracking.values())
    inside = sum(
        min(range_of[concept]) <= part["kid_lite0"] <= max(range_of[concept])
        for (concept, _), (_, part) in rows.items()
    )
    better = sum(part["kid_lite0"] <= max(range_of[concept]) for (concept, _), (_, part) in rows.items())
    interval = sum(part["kid_lite0"] <= whole["kid_lite0_high"] for whole, part in rows.values())
    seeds = (
        f"inside the range of the full runs' seeds in {inside}, at or below its upper end in {better}, "
        if len(scale.seeds) > 1
        else ""
    )
    return (
        f"## {scale.title}: {len(HELD_OUT)} held-out concepts, seeds {len(scale.seeds)}, "
        f"full budget {scale.images:,} images\n"
        f"{stopped} of {len(rows)} runs were stopped, all together with {all_together:.2f} times fewer images (median "
        f"{statistics.median(fewer):.2f}, least {min(fewer):.1f}, mean of the ratios {mean_and_spread(fewer, 1)}; at "
        f"least 3 times fewer in {sum(value >= 3 for value in fewer)}) and in {statistics.median(quicker):.1f} "
        "times less time (median; a run's steps and tracking against as many such steps as the full budget has). L1 is "
        f"{statistics.mean(worse):+.1%} ± {statistics.stdev(worse):.1%} against the full budget's (worst "
        f"{max(worse):+.1%}; {sum(value <= TOLERATED for value in worse)} of {len(rows)} runs within "
        f"{TOLERATED:.0%}). kid_lite0 lies {seeds}at or below the full run's own 95 % bound over images in {interval} "
        f"of {len(rows)}. Tracking took {statistics.mean(share):.0%} ± {statistics.stdev(share):.0%} of the stopped "
        "runs' time.\n\n"
        "| concept | images at the stop, by seed | seconds, full budget | seconds, stopped | "
        + " | ".join(f"{column}, {side}" for column in COLUMNS for side in ("full budget", "stopped"))
        + " |\n|---|---|---|---|"
        + "---|" * 6
        + "\n"
        + "\n".join(lines)
    )


def calibration(curves: dict[Scale, list[dict[str, Any]]]) -> str:
    """Section of the page: how window and threshold were chosen."""
    averaged = [grid(scale, found, "averaged") for scale, found in curves.items()]
    raw = [grid(scale, found, "raw") for scale, found in curves.items()]
    window, threshold, _ = PRESETS["adapter"]
    least = [
        min(statistics.mean(cell.excesses) for cell in cells.values() if cell.share <= 1 / 3) for cells in averaged
    ]
    thrice = ", ".join(f"{value:+.1%} ({scale.title})" for value, scale in zip(least, curves, strict=True))
    alone = ", ".join(f"{scale.title}: {choice([cells])}" for scale, cells in zip(curves, averaged, strict=True))
    tables = "\n\n".join(
        f"### {scale.title}\nMoving average of the generator:\n\n{grid_table(cells)}\n\n"
        f"The generator itself:\n\n{grid_table(raw_cells)}"
        for scale, cells, raw_cells in zip(curves, averaged, raw, strict=True)
    )
    lines = []
    for scale, found in curves.items():
        rho = {
            kind: [spearmanr(range(len(each[kind])), each[kind]).statistic for each in found]
            for kind in ("averaged", "raw", "training")
        }
        stops = [stop_of(each["training"], window, threshold) for each in found]
        columns = [mean_and_spread(rho[kind], 2) for kind in ("averaged", "raw", "training")]
        columns.append(", ".join("never" if stop is None else str(stop) for stop in stops))
        columns.append(", ".join(f"{1 - each['averaged'][20 // EVERY] / each['averaged'][0]:.0%}" for each in found))
        lines.append(f"| {scale.title} | " + " | ".join(columns) + " |")
    return (
        "## How window and threshold were chosen\n"
        f"One value in {EVERY} batches. On {', '.join(f'{concept} (seed {seed})' for concept, seed in CALIBRATION)}, "
        "which are not reported above: the batch at which each pair of numbers stops the three runs, in brackets mean "
        "and worst L1 on validation photos against that of the full budget. – is never, the whole budget. Chosen is "
        f"the smallest mean share of the budgets with a mean excess of at most {TOLERATED:.0%} at each scale: "
        f"{choice(averaged)}. Each scale alone would choose: {alone}. A third of the budget costs at least "
        f"{thrice} of L1 with any window and threshold of the grid. On the generator itself both would "
        f"choose {choice(raw)}.\n\n"
        f"{tables}\n\n"
        "Spearman's correlation with the step:\n\n"
        "| scale | objective of the moving average | of the generator itself | training L1 | the preset on it stops "
        "at | fall of the first in 20 batches |\n|---|---|---|---|---|---|\n" + "\n".join(lines)
    )


def page(scales: list[Scale], pairs: Path, out: Path, picture: Path, processes: int) -> str:
    """Calibrate, train the pairs of runs, and write the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    curves = {scale: [calibrate(scale, pairs, out, *cell) for cell in CALIBRATION] for scale in scales}
    draw(curves, picture)
    full = {scale: runs_of(scale, pairs, out, "full", "--early_stopping=null") for scale in scales}
    tracked = {scale: runs_of(scale, pairs, out, "tracked") for scale in scales}
    # in turn, so that a change of the machine's speed meets both
    train_all([runs[scale][cell] for scale in scales for cell in full[scale] for runs in (full, tracked)], processes)
    window, threshold, every = PRESETS["adapter"]
    photos = next(iter(full[scales[0]].values())).result()[-1]["images_per_concept"]
    return "\n\n".join(
        [
            "# Does loss tracking end an adaptation in time?",
            command_block(__doc__),
            f"Batch {BATCH}, LoRA of small.yaml; at {scales[0].size} px on the clustered bases of benchmarks/e2gan.md, "
            f"one for each seed, at {scales[1].size} px on the one of benchmarks/e2gan_pictures.py. Preset `adapter`: "
            f"window {window}, threshold {threshold:g}, a value every {every} batches, 8 frozen training pairs. "
            f"N = {photos:.0f} test photos a concept. Commit {commit()}.",
            *(measured(scale, full[scale], tracked[scale]) for scale in scales),
            calibration(curves),
            f"![curves](../docs/images/{picture.name})",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "bases", "large_base", "out", "picture"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    bases = tuple(options.bases.resolve() / f"base_clustered_{seed}" for seed in range(3))
    both = [
        Scale(64, 16, 3_200, bases, range(3)),
        Scale(128, 32, 1_600, (options.large_base.resolve(),) * 3, range(1)),
    ]
    print(page(both, options.pairs.resolve(), options.out.resolve(), options.picture.resolve(), options.processes))
