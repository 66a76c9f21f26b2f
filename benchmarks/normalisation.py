"""Instance, group or batch norm in the generator? Base, adaptation, bytes and latency at equal images.

python -m benchmarks.normalisation --pairs POOL --chosen FOLDER --out FOLDER

FOLDER of the chosen is the one that benchmarks/e2gan.py made: its choice of concepts is used.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.runs import Run, command_block, commit, mean_and_spread, train_all
from pocketgan.cli import main
from pocketgan.run_folder import last_figures

NORMS, BASE_IMAGES, IMAGES = ("InstanceNorm", "GroupNorm", "BatchNorm"), 9_600, 800
# held out of the bases, and none of those that benchmarks/e2gan.py reports
TUNING, CONCEPTS, RATES = "style_25", ("style_20", "style_23"), (2e-3, 4e-3, 8e-3)
RANKS = json.dumps({"down": 4, "transformer_down": 4, "transformer": 4, "transformer_up": 4, "up": 4})
COLUMNS = ("kid_lite0", "reconstruction", "ssim")


class Benchmark:
    """Bases and adapters of each norm."""

    def __init__(self, pairs: Path, chosen: Path, out: Path, seeds: int) -> None:
        self.pairs, self.chosen, self.out, self.seeds = pairs, chosen, out, range(seeds)

    def base(self, norm: str, seed: int) -> Run:
        return Run(
            self.out / f"base_{norm}_{seed}",
            "configs/base_gan/small.yaml",
            (
                f"--seed_everything={seed}",
                f"--data.root={self.pairs}",
                f"--data.concepts={self.chosen / f'concepts_clustered_{seed}.txt'}",
                f"--model.generator.norm={norm}",
                "--trainer.callbacks=null",
            ),
            (BASE_IMAGES,),
        )

    def tuned(self) -> dict[str, float]:
        """Each norm's learning rate of the adapter, by validation L1 on the tuning concept, seed 0."""
        runs = {(norm, rate): self.adapter(norm, TUNING, 0, rate) for norm in NORMS for rate in RATES}
        train_all(runs.values(), 2)
        loss = {key: last_figures(run.folder, "val")["reconstruction"] for key, run in runs.items()}
        return {norm: min(RATES, key=lambda rate: loss[norm, rate]) for norm in NORMS}

    def adapter(self, norm: str, concept: str, seed: int, rate: float) -> Run:
        return Run(
            self.out / f"{norm}_{concept}_{seed}_{rate:g}",
            "configs/lora_adaptation/small.yaml",
            (
                f"--seed_everything={seed}",
                f"--data.root={self.pairs}",
                f"--data.concepts=[{concept}]",
                f"--model.base={self.base(norm, seed).folder}",
                f"--model.ranks={RANKS}",
                f"--model.generator_optimizer.lr={rate}",
                "--early_stopping=null",
            ),
            (IMAGES,),
        )

    def export(self, norm: str, size: int) -> dict[str, float]:
        """Figures of the exported adapter of the first concept."""
        folder = self.out / f"export_{norm}_{size}"
        run = self.adapter(norm, CONCEPTS[0], 0, self.rates[norm]).folder
        main(["export", str(run), f"--out={folder}", f"--size={size}"])
        found: dict[str, float] = json.loads((folder / f"{CONCEPTS[0]}.json").read_text())
        return found

    def page(self, size: int, turns: int) -> str:
        """Train everything that is not there yet; the committed Markdown."""
        train_all([self.base(norm, seed) for norm in NORMS for seed in self.seeds], 2)
        self.rates = self.tuned()
        adapters = {
            norm: [self.adapter(norm, concept, seed, self.rates[norm]) for concept in CONCEPTS for seed in self.seeds]
            for norm in NORMS
        }
        train_all([run for runs in adapters.values() for run in runs], 2)
        # by turns, so that a change of the machine's speed meets all of them
        exported = [{norm: self.export(norm, size) for norm in NORMS} for _ in range(turns)]
        lines = []
        for norm in NORMS:
            base = [self.base(norm, seed).result()[-1] for seed in self.seeds]
            adapted = [run.result()[-1] for run in adapters[norm]]
            cells = [mean_and_spread([row[column] for row in rows]) for rows in (base, adapted) for column in COLUMNS]
            latency = statistics.median(turn[norm]["median_ms"] for turn in exported)
            ratio = statistics.median(turn[norm]["median_ms"] / turn["BatchNorm"]["median_ms"] for turn in exported)
            cells += [f"{adapted[0]['bytes'] / 1024:.1f}", f"{latency:.1f} ({ratio:.2f}×)"]
            lines.append(f"| {norm} | " + " | ".join(cells) + " |")
        columns = [f"{stage} {column}" for stage in ("base", "adapted") for column in COLUMNS]
        rates = ", ".join(f"{norm} {rate:g}" for norm, rate in self.rates.items())
        return (
            "# Instance, group or batch norm in the generator?\n\n"
            f"64 px, width 16, bases on {BASE_IMAGES:,} images, adapters of rank 4 on {IMAGES} images of "
            f"{', '.join(CONCEPTS)}, {len(self.seeds)} seeds: mean ± standard deviation. N = "
            f"{base[0]['images_per_concept']:.0f} test photos a concept. The bases' learning rate is "
            f"small.yaml's for all, the adapters' was chosen for each norm on {TUNING}: {rates}. Latency: ONNX "
            f"Runtime, {size} px, 2 threads, median of {turns} exports by turns; in brackets against batch norm in the "
            "same turn. "
            f"Commit {commit()}.\n\n{command_block(__doc__)}\n\n"
            f"| norm | {' | '.join(columns)} | adapter KiB | exported ms |\n|---|"
            + "---|" * 8
            + "\n"
            + "\n".join(lines)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--chosen", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    folders = (options.pairs.resolve(), options.chosen.resolve(), options.out.resolve())
    print(Benchmark(*folders, options.seeds).page(options.size, options.turns))
