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
BASE_IMAGES, ADAPTER_IMAGES, CONDENSE_IMAGES, FINE_TUNE_IMAGES = 4_800, 800, 2_400, (400, 2_400)
COMPRESSION_IMAGES = CONDENSE_IMAGES + FINE_TUNE_IMAGES[-1]
OWN_IMAGES = ADAPTER_IMAGES + COMPRESSION_IMAGES  # of the concept, in all of a pruned network's history
SHARES, MULTIPLE = (0.5, 0.25, 0.125), 2
WEIGHT = 5.0  # of the concentration term, which leaves a layer alone at the share that is to stay
L1 = "reconstruction"
COLUMNS = (L1, "kid_lite0", "ssim")
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
        self, name: str, seed: int, images: tuple[int, ...], weight: float, teacher: str, share: float, *more: str
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
                f"--model.condensed_share={share if weight else 0}",
                "--model.cost=null",  # shares are of every layer, so every layer counts alike
                f"--model.teacher={teacher}",
                "--model.max_teacher_loss=1",  # worse teachers are part of the result here
                "--model.target.size=64",
                "--model.target.runs=1",
                *more,
            ),
            images,
        )

    def condensed(self, weight: float, share: float, seed: int) -> Run:
        """The first stage alone, which several arms go on from; a weight of 0 is training on."""
        name = f"condensed_{share:g}" if weight else "condensed_0"
        return self.compression(name, seed, (CONDENSE_IMAGES,), weight, "condensed", share)

    def pruned(self, arm: str, share: float, seed: int) -> Run:
        """One arm at one share of the channels."""
        weight, teacher = ARMS[arm]
        return self._second_stage(
            arm.replace(", ", "_").replace(" ", "_") + f"_{share:g}", weight, teacher, share, seed
        )

    def unpruned(self, seed: int) -> Run:
        """The adapter trained on as it is."""
        return self._second_stage("unpruned", 0.0, "null", 1.0, seed)

    def _second_stage(self, name: str, weight: float, teacher: str, share: float, seed: int) -> Run:
        start = f"--ckpt_path={self.condensed(weight, share, seed).folder}/checkpoints/last.ckpt"
        images = tuple(CONDENSE_IMAGES + more for more in FINE_TUNE_IMAGES)
        return self.compression(name, seed, images, weight, teacher, share, start)

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
        stages = [(0.0, 1.0), *((WEIGHT, share) for share in SHARES)]
        train_all([self.condensed(*stage, seed) for seed in self.seeds for stage in stages], self.processes)
        for seed in self.seeds:
            pruned = [self.pruned(arm, share, seed) for share in SHARES for arm in ARMS]
            narrow = [self.scratch(share, seed) for share in SHARES]
            train_all([self.unpruned(seed), *pruned, *narrow], self.processes)
        return self.page(turns)

    def rows(self, name: str, share: float, place: int = -1) -> list[dict[str, float]]:
        """Test figures of an arm by seed, at the first or the last image count."""
        if name in SCRATCH:
            return [self.scratch(share, seed).result()[SCRATCH.index(name)] for seed in self.seeds]
        return [self.pruned(name, share, seed).result()[place] for seed in self.seeds]

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
        whole = [self.unpruned(seed).result() for seed in self.seeds]
        adapters = [self.adapter(seed).result()[-1] for seed in self.seeds]
        few, many = FINE_TUNE_IMAGES
        lines = [
            "# What condensing and a condensed teacher are worth\n",
            f"64 px, width 16, batch norm, {CONCEPT}, {len(self.seeds)} seeds: mean ± standard deviation, differences "
            f"paired by seed. A base on {BASE_IMAGES:,} images of three other styles, an adapter merged into it "
            f"({ADAPTER_IMAGES} images), then {CONDENSE_IMAGES:,} images of condensing (weight {WEIGHT:g}, down to the "
            f"share that is to stay) and {many:,} of fine-tuning, tested after {few} as well; where an arm does not "
            f"condense it trains on for as long. The share is that of every layer's channels, in multiples of "
            f"{MULTIPLE}, so that all arms of a share are one shape and have one latency. Narrow from scratch is that "
            f"shape freshly initialised, on the concept's {OWN_IMAGES:,} images and on {BASE_IMAGES + OWN_IMAGES:,}. "
            "PHOTOS: 768, of Open Images, COCO, BSDS500 and Debian's wallpapers. "
            f"N = {adapters[0]['images_per_concept']:.0f} test photos. Begun at commit {self.begun.read_text()}.\n",
            f"{command_block(__doc__)}\n",
            f"| share | network | val L1 just after pruning | after {few}: L1 | kid_lite0 | after {many:,}: L1 | "
            "kid_lite0 | SSIM | L1 against unpruned | better than narrow from scratch |",
            "|---|---|---|---|---|---|---|---|---|---|",
            f"| 1 | adapter as it came | | | | {cells(adapters, COLUMNS)} | | |",
            f"| 1 | unpruned, trained on as long | | {cells([one[0] for one in whole], COLUMNS[:2])} | "
            f"{cells([one[-1] for one in whole], COLUMNS)} | | |",
        ]
        for share in SHARES:
            narrow = self.rows(SCRATCH[1], share)
            for name in (*ARMS, *SCRATCH):
                rows = self.rows(name, share)
                ratios = [row[L1] / one[-1][L1] - 1 for row, one in zip(rows, whole, strict=True)]
                against = mean_and_spread([100 * ratio for ratio in ratios], 1) + " %"
                start, better = "| |", ""
                if name in ARMS:
                    after = mean_and_spread([100 * value for value in self.after_pruning(name, share)], 1)
                    start = f"{after} % | {cells(self.rows(name, share, 0), COLUMNS[:2])}"
                    wins = sum(row[L1] < one[L1] for row, one in zip(rows, narrow, strict=True))
                    better = f"{wins}/{len(rows)}"
                lines.append(f"| {share:g} | {name} | {start} | {cells(rows, COLUMNS)} | {against} | {better} |")
        lines += [
            "\nJust after pruning: against the adapter as it came. L1 against unpruned is that of the last image "
            "count, below 0 is better; the last column counts the seeds whose L1 is below that of "
            f"{SCRATCH[1]}.\n",
            f"## Paired differences to *{FULL}*\n",
            f"Above 0 the arm is worse.\n\n| share | arm | after {few}: L1 | kid_lite0 | after {many:,}: L1 | "
            "kid_lite0 |\n|---|---|---|---|---|---|",
        ]
        for share in SHARES:
            for arm in list(ARMS)[1:]:
                found = []
                for place in (0, -1):
                    for column in COLUMNS[:2]:
                        pairs = zip(self.rows(arm, share, place), self.rows(FULL, share, place), strict=True)
                        differences = [one[column] - full[column] for one, full in pairs]
                        worse = sum(difference > 0 for difference in differences)
                        found.append(f"{mean_and_spread(differences)} ({worse}/{len(differences)} worse)")
                lines.append(f"| {share:g} | {arm} | {' | '.join(found)} |")
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


def cells(rows: list[dict[str, float]], columns: tuple[str, ...]) -> str:
    """Mean and spread of columns, as cells of a table."""
    return " | ".join(mean_and_spread([row[column] for row in rows]) for column in columns)


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
