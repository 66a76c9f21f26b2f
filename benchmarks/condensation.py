r"""Does condensing before pruning, and the condensed network as the teacher, keep quality? 64 px, width 16, batch norm.

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[0,6,12,20]' \
    --model.teacher.size 256 --model.size 64 --data.root PHOTOS --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.condensation --pairs PAIRS --out FOLDER

A second start goes on where the first ended.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.runs import Run, command_block, commit, mean_and_spread, train_all
from lightning_modules import load_run
from pocketgan.compression import LatencyTarget, parameter_count
from pocketgan.run_folder import COMPRESSION_FILE

STYLES, CONCEPT = ("style_00", "style_06", "style_12"), "style_20"
BASE_IMAGES, ADAPTER_IMAGES, CONDENSE_IMAGES, FINE_TUNE_IMAGES = 4_800, 800, 2_400, 2_400
COMPRESSION_IMAGES = CONDENSE_IMAGES + FINE_TUNE_IMAGES
OWN_IMAGES = ADAPTER_IMAGES + COMPRESSION_IMAGES  # of the concept, in all of a pruned network's history
SHARES, MULTIPLE = (0.5, 0.25, 0.125), 2
WEIGHT = 2.0  # of the concentration term, the best of 0, 1, 2, 3 and 5 on another set of 200 photos
COLUMNS = ("reconstruction", "kid_lite0", "ssim")
RANKS = json.dumps({"down": 4, "transformer_down": 4, "transformer": 4, "transformer_up": 4, "up": 4})
# the weight of the first stage, and whose edits teach in the last
ARMS: dict[str, tuple[float, str]] = {
    "condense, prune, teacher": (WEIGHT, "condensed"),
    "prune, teacher": (0.0, "condensed"),
    "condense, prune": (WEIGHT, "null"),
    "condense, prune, base as teacher": (WEIGHT, "base"),
}
FULL = next(iter(ARMS))
SCRATCH = ("narrow from scratch, the concept's images", "narrow from scratch, the base's images as well")


class Benchmark:
    """Bases and adapters, what is pruned of them, and what was always narrow."""

    def __init__(self, pairs: Path, out: Path, seeds: int, processes: int) -> None:
        self.pairs, self.out, self.seeds, self.processes = pairs, out, range(seeds), processes
        out.mkdir(parents=True, exist_ok=True)
        self.begun = out / "commit.txt"
        if not self.begun.exists():
            self.begun.write_text(commit())

    def data(self, seed: int, concepts: str = CONCEPT) -> tuple[str, ...]:
        return (f"--seed_everything={seed}", f"--data.root={self.pairs}", f"--data.concepts=[{concepts}]")

    def base(self, seed: int) -> Run:
        return Run(
            self.out / f"base_{seed}",
            "configs/base_gan/small.yaml",
            (*self.data(seed, ",".join(STYLES)), "--model.generator.norm=BatchNorm", "--trainer.callbacks=null"),
            (BASE_IMAGES,),
        )

    def adapter(self, seed: int) -> Run:
        return Run(
            self.out / f"adapter_{seed}",
            "configs/lora_adaptation/small.yaml",
            (
                *self.data(seed),
                f"--model.base={self.base(seed).folder}",
                f"--model.ranks={RANKS}",
                "--model.generator_optimizer.lr=4e-3",  # chosen for batch norm in benchmarks/normalisation.md
                "--early_stopping=null",
            ),
            (ADAPTER_IMAGES,),
        )

    def compression(
        self, name: str, seed: int, images: int, weight: float, teacher: str, share: float, *more: str
    ) -> Run:
        rule = {"class_path": "KeptShare", "init_args": {"share": share, "multiple": MULTIPLE}}
        return Run(
            self.out / f"{name}_{seed}",
            "configs/channel_condensation/small.yaml",
            (
                *self.data(seed),
                f"--model.base={self.adapter(seed).folder}",
                f"--model.condense_images={CONDENSE_IMAGES}",
                f"--model.pruning={json.dumps(rule)}",
                f"--model.concentration_weight={weight}",
                "--model.cost=null",  # shares are of every layer, so every layer counts alike
                f"--model.teacher={teacher}",
                "--model.max_teacher_loss=1",  # worse teachers are part of the result here
                "--model.target.size=64",
                "--model.target.runs=1",
                *more,
            ),
            (images,),
        )

    def condensed(self, weight: float, seed: int) -> Run:
        """The first stage alone, which all shares go on from; a weight of 0 is training on."""
        return self.compression(f"condensed_{weight:g}", seed, CONDENSE_IMAGES, weight, "condensed", 1.0)

    def pruned(self, arm: str, share: float, seed: int) -> Run:
        """One arm at one share of the channels."""
        weight, teacher = ARMS[arm]
        return self._second_stage(arm.replace(", ", "_") + f"_{share:g}", weight, teacher, share, seed)

    def unpruned(self, seed: int) -> Run:
        """The adapter trained on as it is."""
        return self._second_stage("unpruned", 0.0, "null", 1.0, seed)

    def _second_stage(self, name: str, weight: float, teacher: str, share: float, seed: int) -> Run:
        start = f"--ckpt_path={self.condensed(weight, seed).folder}/checkpoints/last.ckpt"
        return self.compression(name, seed, COMPRESSION_IMAGES, weight, teacher, share, start)

    def scratch(self, share: float, seed: int) -> Run:
        generator = {
            "class_path": "benchmarks.narrow.NarrowGenerator",
            "init_args": {
                "width": 16, "share": share, "multiple": MULTIPLE, "token_size": 64, "norm": "BatchNorm",
                "transformer_skip": True,
            },
        }  # fmt: skip
        return Run(
            self.out / f"scratch_{share:g}_{seed}",
            "configs/base_gan/small.yaml",
            (*self.data(seed), f"--model.generator={json.dumps(generator)}", "--trainer.callbacks=null"),
            (OWN_IMAGES, BASE_IMAGES + OWN_IMAGES),
        )

    def milliseconds(self, turns: int) -> dict[float, list[float]]:
        """Median latency at each share, by turns: runs of a share have the same widths."""
        runs = {1.0: self.unpruned(0), **{share: self.pruned(FULL, share, 0) for share in SHARES}}
        networks = [load_run(run.folder).deployed(CONCEPT) for run in runs.values()]
        turned = [LatencyTarget(threads=2, size=64).measure(networks, 8) for _ in range(turns)]
        return {share: [turn[place].median_ms for turn in turned] for place, share in enumerate(runs)}

    def run(self, turns: int) -> str:
        """Train everything that is not there yet; the committed Markdown."""
        train_all([self.base(seed) for seed in self.seeds], self.processes)
        train_all([self.adapter(seed) for seed in self.seeds], self.processes)
        train_all([self.condensed(weight, seed) for seed in self.seeds for weight in (WEIGHT, 0.0)], self.processes)
        for seed in self.seeds:
            pruned = [self.pruned(arm, share, seed) for share in SHARES for arm in ARMS]
            narrow = [self.scratch(share, seed) for share in SHARES]
            train_all([self.unpruned(seed), *pruned, *narrow], self.processes)
        return self.page(turns)

    def rows(self, name: str, share: float) -> list[dict[str, float]]:
        """Test figures of an arm by seed."""
        if name in SCRATCH:
            return [self.scratch(share, seed).result()[SCRATCH.index(name)] for seed in self.seeds]
        return [self.pruned(name, share, seed).result()[-1] for seed in self.seeds]

    def after_pruning(self, arm: str, share: float) -> list[float]:
        """Validation L1 just after the pruning, against that of the adapter as it came."""
        found = []
        for seed in self.seeds:
            figures = json.loads((self.pruned(arm, share, seed).folder / COMPRESSION_FILE).read_text())
            found.append(figures["trace"][1]["val_loss"] / figures["before"]["val_loss"] - 1)
        return found

    def page(self, turns: int) -> str:
        """The committed Markdown."""
        latencies = self.milliseconds(turns)
        whole = self.rows("unpruned", 1.0)
        adapters = [self.adapter(seed).result()[-1] for seed in self.seeds]
        lines = [
            "# What condensing and a condensed teacher are worth\n",
            f"64 px, width 16, batch norm, {CONCEPT}, {len(self.seeds)} seeds: mean ± standard deviation, differences "
            f"paired by seed. A base on {BASE_IMAGES:,} images of three other styles, an adapter merged into it "
            f"({ADAPTER_IMAGES} images), then {CONDENSE_IMAGES:,} images of condensing and {FINE_TUNE_IMAGES:,} of "
            "fine-tuning; where an arm does not condense it trains on for as long. All shares of an arm and seed go on "
            f"from one condensed network. The share is that of every layer's channels, in multiples of {MULTIPLE}, so "
            "that all arms of a share are one shape and have one latency. Narrow from scratch is that shape freshly "
            f"initialised, on the concept's {OWN_IMAGES:,} images and on {BASE_IMAGES + OWN_IMAGES:,}. "
            "PHOTOS: 768, of Open Images, COCO, BSDS500 and Debian's wallpapers. "
            f"N = {whole[0]['images_per_concept']:.0f} test photos. Begun at commit {self.begun.read_text()}.\n",
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
            f"| share | less *{FULL}* | L1 | kid_lite0 |\n|---|---|---|---|",
        ]
        for share in SHARES:
            for arm in list(ARMS)[1:]:
                cells = []
                for column in ("reconstruction", "kid_lite0"):
                    pairs = zip(self.rows(arm, share), self.rows(FULL, share), strict=True)
                    differences = [one[column] - full[column] for one, full in pairs]
                    worse = sum(difference > 0 for difference in differences)
                    cells.append(f"{mean_and_spread(differences)} ({worse}/{len(differences)} worse)")
                lines.append(f"| {share:g} | {arm} | {' | '.join(cells)} |")
        lines += [
            "\n## Latency\n",
            f"ONNX Runtime, 64 px, 2 threads, median over {turns} turns of the median of 30 runs; the ratio is that of "
            "the same turn.\n",
            "| share | parameters | MMACs | ms | times faster | MACs fewer | latency gain / MAC gain |",
            "|---|---|---|---|---|---|---|",
        ]
        for share, measured in latencies.items():
            run = self.unpruned(0) if share == 1 else self.pruned(FULL, share, 0)
            figures = json.loads((run.folder / COMPRESSION_FILE).read_text())
            faster = statistics.median(one / other for one, other in zip(latencies[1.0], measured, strict=True))
            fewer = figures["before"]["macs"] / figures["after"]["macs"]
            parameters = parameter_count(load_run(run.folder).deployed(CONCEPT))
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
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    benchmark = Benchmark(options.pairs.resolve(), options.out.resolve(), options.seeds, options.processes)
    print(benchmark.run(options.turns))
