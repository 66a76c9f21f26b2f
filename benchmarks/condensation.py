"""Does condensing before pruning, and the condensed network as the teacher, keep quality? 64 px, width 16, batch norm.

python -m benchmarks.condensation --pairs POOL --adapters FOLDER --out FOLDER

POOL is the pair set that benchmarks/e2gan.py names, FOLDER of the adapters the one that benchmarks/normalisation.py
made: its bases and adapters with batch norm are compressed. A second start goes on where the first ended.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.normalisation import BASE_IMAGES, CONCEPTS, IMAGES
from benchmarks.runs import Run, command_block, commit, mean_and_spread, train_all
from lightning_modules import load_run
from pocketgan.compression import LatencyTarget, parameter_count
from pocketgan.run_folder import COMPRESSION_FILE

CONDENSE_IMAGES, FINE_TUNE_IMAGES = 1_600, 800
COMPRESSION_IMAGES = CONDENSE_IMAGES + FINE_TUNE_IMAGES
OWN_IMAGES = IMAGES + COMPRESSION_IMAGES  # of the concept, in all of a pruned network's history
Key = tuple[str, int]  # concept and seed
SHARES, MULTIPLE = (0.5, 0.25, 0.125), 2
COLUMNS = ("reconstruction", "kid_lite0", "ssim")
ARMS = {
    "condense, prune, teacher": (),
    "prune, teacher": ("--model.concentration_weight=0",),
    "condense, prune": ("--model.teacher=null",),
}
FULL = next(iter(ARMS))
SCRATCH = ("narrow from scratch, the concept's images", "narrow from scratch, the base's images as well")


class Benchmark:
    """Bases and adapters, what is pruned of them, and what was always narrow."""

    def __init__(
        self, pairs: Path, adapters: Path, out: Path, concepts: Sequence[str], seeds: int, processes: int
    ) -> None:
        self.pairs, self.adapters, self.out, self.processes = pairs, adapters, out, processes
        self.concepts, self.seeds = concepts, seeds
        self.keys = [(concept, seed) for concept in concepts for seed in range(seeds)]
        out.mkdir(parents=True, exist_ok=True)
        self.begun = out / "commit.txt"
        if not self.begun.exists():
            self.begun.write_text(commit())

    def data(self, key: Key) -> tuple[str, ...]:
        concept, seed = key
        return (f"--seed_everything={seed}", f"--data.root={self.pairs}", f"--data.concepts=[{concept}]")

    def adapter(self, key: Key) -> Run:
        """Of benchmarks/normalisation.py, with the rate that it chose for batch norm."""
        concept, seed = key
        return Run(self.adapters / f"BatchNorm_{concept}_{seed}_0.004", "", (), (IMAGES,))

    def pruned(self, arm: str, share: float, key: Key, *more: str) -> Run:
        """One arm at one share of the channels; a share of 1 is the adapter trained on as it is."""
        rule = {"class_path": "KeptShare", "init_args": {"share": share, "multiple": MULTIPLE}}
        return Run(
            self.out / f"{arm.replace(', ', '_')}_{share:g}_{key[0]}_{key[1]}",
            "configs/channel_condensation/small.yaml",
            (
                *self.data(key),
                f"--model.base={self.adapter(key).folder}",
                f"--model.condense_images={CONDENSE_IMAGES}",
                f"--model.pruning={json.dumps(rule)}",
                "--model.max_teacher_loss=1",  # worse teachers are part of the result here
                "--model.target.runs=1",
                *more,
            ),
            (COMPRESSION_IMAGES,),
        )

    def unpruned(self, key: Key) -> Run:
        return self.pruned("unpruned", 1.0, key, "--model.concentration_weight=0", "--model.teacher=null")

    def scratch(self, share: float, key: Key) -> Run:
        generator = {
            "class_path": "benchmarks.narrow.NarrowGenerator",
            "init_args": {
                "width": 16, "share": share, "multiple": MULTIPLE, "token_size": 64, "norm": "BatchNorm",
                "transformer_skip": True,
            },
        }  # fmt: skip
        return Run(
            self.out / f"scratch_{share:g}_{key[0]}_{key[1]}",
            "configs/base_gan/small.yaml",
            (*self.data(key), f"--model.generator={json.dumps(generator)}", "--trainer.callbacks=null"),
            (OWN_IMAGES, BASE_IMAGES + OWN_IMAGES),
        )

    def milliseconds(self, turns: int) -> dict[float, list[float]]:
        """Median latency at each share, by turns: runs of a share have the same widths."""
        networks = [load_run(self.unpruned(self.keys[0]).folder).deployed(self.concepts[0])]
        networks += [
            load_run(self.pruned(FULL, share, self.keys[0]).folder).deployed(self.concepts[0]) for share in SHARES
        ]
        found: dict[float, list[float]] = {share: [] for share in (1.0, *SHARES)}
        for _ in range(turns):
            for share, latency in zip(found, LatencyTarget(threads=2, size=64).measure(networks, 8), strict=True):
                found[share].append(latency.median_ms)
        return found

    def run(self, turns: int) -> str:
        """Train everything that is not there yet; the committed Markdown."""
        train_all(
            [
                run
                for key in self.keys
                for run in (
                    self.unpruned(key),
                    *(self.pruned(arm, share, key, *more) for share in SHARES for arm, more in ARMS.items()),
                    *(self.scratch(share, key) for share in SHARES),
                )
            ],
            self.processes,
        )
        return self.page(turns)

    def rows(self, name: str, share: float) -> list[dict[str, float]]:
        """Test figures of an arm by seed."""
        if name in SCRATCH:
            return [self.scratch(share, key).result()[SCRATCH.index(name)] for key in self.keys]
        if share == 1:
            return [self.unpruned(key).result()[-1] for key in self.keys]
        return [self.pruned(name, share, key).result()[-1] for key in self.keys]

    def after_pruning(self, arm: str, share: float) -> list[float]:
        """Validation L1 just after the pruning, against that of the base as it came."""
        found = []
        for key in self.keys:
            figures = json.loads((self.pruned(arm, share, key).folder / COMPRESSION_FILE).read_text())
            found.append(figures["trace"][1]["val_loss"] / figures["before"]["val_loss"] - 1)
        return found

    def page(self, turns: int) -> str:
        """The committed Markdown."""
        latencies = self.milliseconds(turns)
        whole = self.rows("unpruned", 1.0)
        adapters = [self.adapter(key).result()[-1] for key in self.keys]
        lines = [
            "# What condensing and a condensed teacher are worth\n",
            f"64 px, width 16, batch norm, {' and '.join(self.concepts)}, {self.seeds} seeds each: mean ± standard "
            f"deviation over these {len(self.keys)} runs, differences paired by run. Base of "
            f"benchmarks/normalisation.md on {BASE_IMAGES:,} images of six other styles, adapter merged into it "
            f"({IMAGES} images), then {CONDENSE_IMAGES:,} images of condensing and {FINE_TUNE_IMAGES} of fine-tuning; "
            "where an arm does not condense it trains on for as long. The share is that of every layer's "
            f"channels, in multiples of {MULTIPLE}, so that all arms of a share are one shape and have one latency. "
            f"Narrow from scratch is that shape freshly initialised, on the concept's {OWN_IMAGES:,} images and on "
            f"{BASE_IMAGES + OWN_IMAGES:,}. N = {whole[0]['images_per_concept']:.0f} test photos. Begun at commit "
            f"{self.begun.read_text()}.\n",
            f"{command_block(__doc__)}\n",
            "| share | network | L1 | kid_lite0 | SSIM | L1 against unpruned | better than narrow from scratch | "
            "val L1 just after pruning |",
            "|---|---|---|---|---|---|---|---|",
            self._line("1", "adapter as it came", adapters, None, None, None),
            self._line("1", "unpruned, trained on as long", whole, None, None, None),
        ]
        for share in SHARES:
            narrow = self.rows(SCRATCH[1], share)
            for arm in ARMS:
                after = mean_and_spread([100 * value for value in self.after_pruning(arm, share)], 1) + " %"
                lines.append(self._line(f"{share:g}", arm, self.rows(arm, share), whole, narrow, after))
            for name in SCRATCH:
                lines.append(self._line(f"{share:g}", name, self.rows(name, share), whole, None, None))
        lines += [
            "\nSigns: L1 against unpruned is relative, below 0 is better; the next column counts the runs whose L1 is "
            f"below that of {SCRATCH[1]}.\n",
            "## Paired differences in L1 and kid_lite0\n",
            "| share | what is left out | L1 | kid_lite0 |\n|---|---|---|---|",
        ]
        for share in SHARES:
            for arm in list(ARMS)[1:]:
                cells = []
                for column in ("reconstruction", "kid_lite0"):
                    pairs = zip(self.rows(arm, share), self.rows(FULL, share), strict=True)
                    differences = [one[column] - full[column] for one, full in pairs]
                    worse = sum(difference > 0 for difference in differences)
                    cells.append(f"{mean_and_spread(differences)} ({worse}/{len(differences)} worse)")
                left_out = "condensing" if "condense" not in arm else "the teacher"
                lines.append(f"| {share:g} | {left_out} | {' | '.join(cells)} |")
        lines += [
            "\n## Latency\n",
            f"ONNX Runtime, 64 px, 2 threads, median over {turns} turns of the median of 30 runs; the ratio is that of "
            "the same turn.\n",
            "| share | parameters | MMACs | ms | times faster | MACs fewer | latency gain / MAC gain |",
            "|---|---|---|---|---|---|---|",
        ]
        for share, measured in latencies.items():
            run = self.unpruned(self.keys[0]) if share == 1 else self.pruned(FULL, share, self.keys[0])
            figures = json.loads((run.folder / COMPRESSION_FILE).read_text())
            faster = statistics.median(one / other for one, other in zip(latencies[1.0], measured, strict=True))
            fewer = figures["before"]["macs"] / figures["after"]["macs"]
            parameters = parameter_count(load_run(run.folder).deployed(self.concepts[0]))
            lines.append(
                f"| {share:g} | {parameters:,} | {figures['after']['macs'] / 1e6:.1f} | "
                f"{statistics.median(measured):.2f} | {faster:.2f} | {fewer:.2f} | {faster / fewer:.2f} |"
            )
        return "\n".join(lines)

    def _line(
        self,
        share: str,
        name: str,
        rows: list[dict[str, float]],
        whole: list[dict[str, float]] | None,
        narrow: list[dict[str, float]] | None,
        after: str | None,
    ) -> str:
        cells = [mean_and_spread([row[column] for row in rows]) for column in COLUMNS]
        against, better = "", ""
        if whole is not None:
            relative = [
                100 * (row["reconstruction"] / one["reconstruction"] - 1) for row, one in zip(rows, whole, strict=True)
            ]
            against = mean_and_spread(relative, 1) + " %"
        if narrow is not None:
            wins = sum(row["reconstruction"] < one["reconstruction"] for row, one in zip(rows, narrow, strict=True))
            better = f"{wins}/{len(rows)}"
        return f"| {share} | {name} | {' | '.join(cells)} | {against} | {better} | {after or ''} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    folders = (options.pairs.resolve(), options.adapters.resolve(), options.out.resolve())
    benchmark = Benchmark(*folders, options.concepts, options.seeds, options.processes)
    print(benchmark.run(options.turns))
