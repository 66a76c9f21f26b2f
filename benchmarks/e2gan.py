r"""E2GAN's comparisons at 64 px and width 16: equal images, equal training time, three seeds.

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style null --model.size 128 \
    --data.root PHOTOS --data.limit 200 --trainer.default_root_dir POOL
python -m benchmarks.e2gan --pairs POOL --out FOLDER

A second start goes on where the first ended.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from benchmarks.runs import (
    BATCH,
    SETTING,
    SPLIT,
    Run,
    command_block,
    commit,
    mean_and_spread,
    paired_difference,
    train_all,
)
from pocketgan.cli import main
from pocketgan.run_folder import last_figures
from pocketgan.selection import read_selection

POOL = [f"style_{style:02d}" for style in range(18)]
HELD_OUT = ["style_18", "style_19", "style_21", "style_22", "style_24"]
TUNING = "style_25"  # held out as well; learning rates and ranks are chosen on it alone
CONCEPTS, IMAGES = 6, 1200
BASE_IMAGES, SHORT = (9_600, 28_800), 9_600  # image counts at which a base is tested; images of a short one
RELATIVE = {"down": 1, "transformer_down": 2, "transformer": 1, "transformer_up": 2, "up": 4}
LORA_RATES = (1e-3, 2e-3, 4e-3)  # at 8e-3 some runs diverge
# those of random ranks, half the photos and the short base are the searched ranks'
RATES = {
    "scratch": (1e-3, 2e-3, 4e-3),
    "full": (1e-3, 2e-3, 4e-3),
    "lora": LORA_RATES,
    "lora_s1": LORA_RATES,
    "lora_s4": LORA_RATES,
    "lora_random_base": LORA_RATES,
    "lora_single_base": LORA_RATES,
}
TIMED = ("scratch", "full", "lora")
KINDS = ("clustered", "random", "single", "short")
COLUMNS = ("kid_lite0", "reconstruction", "ssim")


class Benchmark:
    """The runs by name, on one pair set, below one folder."""

    def __init__(self, pairs: Path, out: Path, seeds: int, processes: int) -> None:
        self.pairs, self.out, self.seeds, self.processes = pairs, out, range(seeds), processes
        out.mkdir(parents=True, exist_ok=True)
        self.begun = out / "commit.txt"
        if not self.begun.exists():
            self.begun.write_text(commit())

    def common(self, concepts: str, seed: int) -> tuple[str, ...]:
        return (
            f"--seed_everything={seed}",
            f"--data.root={self.pairs}",
            f"--data.concepts={concepts}",
        )

    def concepts_of(self, kind: str, seed: int) -> Path:
        """File that names a base's concepts; a short one has the clustered ones."""
        return self.out / f"concepts_{'clustered' if kind == 'short' else kind}_{seed}.txt"

    def base(self, kind: str, seed: int) -> Run:
        """A base of clustered, random or one concept, or of clustered ones on fewer images."""
        return Run(
            self.out / f"base_{kind}_{seed}",
            "configs/base_gan/small.yaml",
            (*self.common(str(self.concepts_of(kind, seed)), seed), "--trainer.callbacks=null"),
            (SHORT,) if kind == "short" else BASE_IMAGES,
        )

    def choose(self) -> None:
        """Name the concepts of each base, and the halves of the photos."""
        for seed in self.seeds:
            for kind, method, count in (
                ("clustered", "kmeans", CONCEPTS),
                ("random", "random", CONCEPTS),
                ("single", "random", 1),
            ):
                self.select(
                    "concepts", f"concepts_{kind}_{seed}.txt", method, count, f"--candidates=[{','.join(POOL)}]", seed
                )
            for kind, method in (("clustered", "kmeans"), ("random", "random")):
                self.select("photos", f"photos_{kind}_{seed}.txt", method, 60, f"--concepts=[{TUNING}]", seed)

    def select(self, what: str, name: str, method: str, count: int, among: str, seed: int) -> None:
        if not (self.out / name).exists():
            options = [f"--count={count}", f"--out={self.out / name}", f"--method={method}", among, "--size=64"]
            main(["select", what, str(self.pairs), *options, f"--split={SPLIT}", f"--choice_seed={seed}"])

    def scratch(self, concept: str, seed: int, rate: float, images: tuple[int, ...], name: str = "scratch") -> Run:
        return Run(
            self.out / f"{name}_{concept}_{seed}",
            "configs/base_gan/small.yaml",
            (*self.common(f"[{concept}]", seed), f"--model.generator_optimizer.lr={rate}", "--trainer.callbacks=null"),
            images,
        )

    def full(self, concept: str, seed: int, rate: float, images: tuple[int, ...], name: str = "full") -> Run:
        return Run(
            self.out / f"{name}_{concept}_{seed}",
            "configs/full_fine_tuning/small.yaml",
            (
                *self.common(f"[{concept}]", seed),
                f"--model.base={self.base('clustered', seed).folder}",
                f"--model.generator_optimizer.lr={rate}",
                "--trainer.callbacks=null",
            ),
            images,
        )

    def lora(
        self, concept: str, seed: int, rate: float, ranks: str, name: str, *more: str,
        base: str = "clustered", images: tuple[int, ...] = (IMAGES,),
    ) -> Run:  # fmt: skip
        return Run(
            self.out / f"{name}_{concept}_{seed}",
            "configs/lora_adaptation/small.yaml",
            (
                *self.common(f"[{concept}]", seed),
                f"--model.base={self.base(base, seed).folder}",
                f"--model.ranks={ranks}",
                f"--model.generator_optimizer.lr={rate}",
                "--early_stopping=null",
                *more,
            ),
            images,
        )

    def scaled(self, factor: int) -> str:
        return json.dumps({part: factor * rank for part, rank in RELATIVE.items()})

    def tuned(self) -> dict[str, float]:
        """Choose each method's learning rate on the tuning concept, by L1 on its validation photos."""
        makers: dict[str, Callable[[float, str, int], Run]] = {
            "scratch": lambda rate, name, images: self.scratch(TUNING, 0, rate, (images,), name),
            "full": lambda rate, name, images: self.full(TUNING, 0, rate, (images,), name),
            **{
                method: partial(self.lora_to_tune, base, factor)
                for method, base, factor in (
                    ("lora", "clustered", 2),
                    ("lora_s1", "clustered", 1),
                    ("lora_s4", "clustered", 4),
                    ("lora_random_base", "random", 2),
                    ("lora_single_base", "single", 2),
                )
            },
        }
        runs = {
            (method, rate): makers[method](rate, f"tune_{method}_{rate:g}", IMAGES)
            for method, rates in RATES.items()
            for rate in rates
        }
        train_all(runs.values(), self.processes)
        # in turn, so that a change of the machine's speed meets all of them
        timed = {(m, turn): makers[m](1e-3, f"time_{m}_{turn}", 200) for turn in range(3) for m in TIMED}
        train_all(timed.values(), self.processes)
        self.steps = {
            m: statistics.median(timed[m, turn].result()[-1]["step_seconds"] for turn in range(3)) for m in TIMED
        }
        self.tuning = {key: last_figures(run.folder, "val")["reconstruction"] for key, run in runs.items()}
        return {method: min(rates, key=lambda rate: self.tuning[method, rate]) for method, rates in RATES.items()}

    def lora_to_tune(self, base: str, factor: int, rate: float, name: str, images: int) -> Run:
        return self.lora(TUNING, 0, rate, self.scaled(factor), name, base=base, images=(images,))

    def searched(self, rate: float) -> list[Run]:
        """One rank search for each base, on the tuning concept; its ranks serve every other concept."""
        search = ("--trainer.callbacks+=RankSearch",)
        runs = [self.lora(TUNING, seed, rate, self.scaled(1), "searched", *search) for seed in self.seeds]
        train_all(runs, self.processes)
        return runs

    def random_ranks(self, seed: int, file: Path) -> Path:
        """Ranks dealt at random over the same layers until they hold as many parameters as the searched ones."""
        from lightning_modules import load_run
        from pocketgan.adapters import layer_ranks

        generator = load_run(self.base("clustered", seed).folder).generator_ema
        layers = dict(generator.named_modules())
        searched = yaml.safe_load(file.read_text())
        cost = {
            name: len(layers[name].weight) + layers[name].weight[0].numel() for name in layer_ranks(generator, searched)
        }
        limit = {name: min(len(layers[name].weight), layers[name].weight[0].numel()) for name in cost}
        goal = sum(cost[name] * rank for name, rank in searched.items())
        draw, ranks = random.Random(seed), dict.fromkeys(cost, 0)
        while sum(cost[name] * rank for name, rank in ranks.items()) < goal:
            name = draw.choice(list(cost))
            ranks[name] = min(ranks[name] + 1, limit[name])
        out = self.out / f"ranks_random_{seed}.yaml"
        out.write_text(yaml.safe_dump(ranks))
        return out

    def run(self) -> str:
        """Train everything that is not there yet and write the page."""
        self.choose()
        train_all([self.base(kind, seed) for seed in self.seeds for kind in KINDS], self.processes)
        rates = self.tuned()
        print(f"learning rates {rates}, steps {self.steps}", flush=True)
        searches = self.searched(rates["lora"])
        # images that a method sees in the time in which LoRA sees IMAGES, in whole batches
        equal = {
            m: max(round(IMAGES * self.steps["lora"] / self.steps[m] / BATCH) * BATCH, BATCH)
            for m in ("scratch", "full")
        }
        third = IMAGES // 3
        methods: dict[str, list[Run]] = {}
        for seed in self.seeds:
            ranks = searches[seed].folder / "ranks.yaml"
            random_file = str(self.random_ranks(seed, ranks))
            photos = {
                kind: f"--data.training_photos={self.out}/photos_{kind}_{seed}.txt" for kind in ("clustered", "random")
            }
            rate = rates["lora"]
            for concept in HELD_OUT:
                for name, one in {
                    "from scratch": self.scratch(
                        concept, seed, rates["scratch"], tuple(sorted({equal["scratch"], IMAGES, 2 * IMAGES}))
                    ),
                    "full fine-tuning": self.full(concept, seed, rates["full"], tuple(sorted({equal["full"], IMAGES}))),
                    "LoRA, searched ranks": self.lora(concept, seed, rate, str(ranks), "lora", images=(third, IMAGES)),
                    "LoRA, random ranks of equal size": self.lora(
                        concept, seed, rate, random_file, "lora_random_ranks"
                    ),
                    "LoRA, s = 1": self.lora(
                        concept, seed, rates["lora_s1"], self.scaled(1), "lora_s1", images=(third, IMAGES)
                    ),
                    "LoRA, s = 4": self.lora(concept, seed, rates["lora_s4"], self.scaled(4), "lora_s4"),
                    "LoRA, base of random concepts": self.lora(
                        concept, seed, rates["lora_random_base"], str(ranks), "lora_random_base", base="random"
                    ),
                    "LoRA, base of a single concept": self.lora(
                        concept, seed, rates["lora_single_base"], str(ranks), "lora_single_base", base="single"
                    ),
                    f"LoRA, base on {SHORT:,} images": self.lora(
                        concept, seed, rate, str(ranks), "lora_short_base", base="short"
                    ),
                    "LoRA, half of the photos by clustering": self.lora(
                        concept, seed, rate, str(ranks), "lora_half_clustered", photos["clustered"]
                    ),
                    "LoRA, half of the photos at random": self.lora(
                        concept, seed, rate, str(ranks), "lora_half_random", photos["random"]
                    ),
                }.items():
                    methods.setdefault(name, []).append(one)
        # by concept and seed, so that an interrupted benchmark is balanced over methods
        train_all([run for group in zip(*methods.values(), strict=True) for run in group], self.processes)
        return self.page(methods, searches, rates, equal)

    def page(
        self, methods: dict[str, list[Run]], searches: list[Run], rates: dict[str, float], equal: dict[str, int]
    ) -> str:
        """The committed Markdown."""

        def rows_at(runs: list[Run], images: int) -> list[dict[str, float]]:
            return [next(row for row in run.result() if row["images"] == images) for run in runs]

        def line(name: str, runs: list[Run], images: int) -> str:
            rows = rows_at(runs, images)
            figures = " | ".join(mean_and_spread([row[column] for row in rows]) for column in COLUMNS)
            return (
                f"| {name} | {figures} | {statistics.mean(row['parameters'] for row in rows):,.0f} | "
                f"{statistics.mean(row['bytes'] for row in rows) / 1024:,.0f} | "
                f"{statistics.mean(row['seconds'] for row in rows):.0f} | {images:,} |"
            )

        def against(name: str, runs: list[Run], images: int, other: list[Run]) -> str:
            """L1, SSIM and kid_lite0 less those of another method's run on the same concept and seed."""
            cells = []
            for column, sign in (("reconstruction", 1), ("kid_lite0", 1), ("ssim", -1)):
                own, reference = ([row[column] for row in rows_at(*each)] for each in ((runs, images), (other, IMAGES)))
                cells.append(paired_difference(own, reference, sign))
            return f"| {name} | {images:,} | {' | '.join(cells)} |"

        head = (
            "| method | " + " | ".join(COLUMNS) + " | trainable | KiB stored | s | images |\n|---|"
            + "---|" * (len(COLUMNS) + 4)
        )  # fmt: skip
        paired = "| method | images | L1 | kid_lite0 | SSIM |\n|---|---|---|---|---|"
        lora, scratch, full = (methods[name] for name in ("LoRA, searched ranks", "from scratch", "full fine-tuning"))
        smallest, third = methods["LoRA, s = 1"], lora[0].images[0]
        lines = [
            "# Which of E2GAN's claims hold at 64 px and width 16?\n",
            f"{len(self.seeds)} seeds × {len(HELD_OUT)} held-out concepts ({', '.join(HELD_OUT)}), "
            f"{len(lora)} runs a row. Base: {CONCEPTS} of {len(POOL)} concepts, {BASE_IMAGES[-1]:,} images, not "
            f"counted in any row. Width 16, batch {BATCH}, {' '.join(SETTING[3:5])}. Relative ranks {RELATIVE}; stem "
            f"and head in full. N = {lora[0].result()[-1]['images_per_concept']:.0f} test photos a concept. Seconds "
            f"are those of training steps, without validation, {self.processes} trainings side by side on one thread "
            "each; the search of ranks is done once for a base and not counted. Photos: the first 200 of shared "
            f"assets' cc_by, split {SPLIT}. Begun at commit {self.begun.read_text()}.\n",
            f"{command_block(__doc__)}\n",
            "## Equal images",
            "Mean ± standard deviation over all runs; most of the spread is between concepts.\n",
            head,
            *(line(name, runs, IMAGES) for name, runs in methods.items()),
            "\n## The same, run by run",
            "Difference from LoRA with searched ranks on the same concept and seed: mean ± standard deviation, and in "
            "how many runs the row is better.\n",
            paired,
            *(against(name, runs, IMAGES, lora) for name, runs in methods.items() if runs is not lora),
            "\n## Fewer and more images",
            head,
            line("LoRA, searched ranks", lora, third),
            line("LoRA, s = 1", smallest, third),
            line("from scratch", scratch, IMAGES),
            line("from scratch", scratch, 2 * IMAGES),
            f"\nAgainst training from scratch on {IMAGES:,} images, run by run:\n",
            paired,
            against("LoRA, searched ranks", lora, third, scratch),
            against("LoRA, s = 1", smallest, third, scratch),
            against("LoRA, searched ranks", lora, IMAGES, scratch),
            "\n## Equal training time",
            "Median step, measured in turn: "
            + ", ".join(f"{method} {1e3 * step:.0f} ms" for method, step in self.steps.items())
            + ". Every LoRA row costs the same step but for its ranks, so that equal images are equal time among them; "
            "the others see more images in LoRA's time.\n",
            head,
            line("LoRA, searched ranks", lora, IMAGES),
            line("from scratch", scratch, equal["scratch"]),
            line("full fine-tuning", full, equal["full"]),
            "\n## By concept, L1 at equal images",
            "| method | " + " | ".join(HELD_OUT) + " |\n|---|" + "---|" * len(HELD_OUT),
        ]
        for name, runs in methods.items():
            by_concept = [
                mean_and_spread([row["reconstruction"] for row in rows_at(runs[place :: len(HELD_OUT)], IMAGES)], 3)
                for place in range(len(HELD_OUT))
            ]
            lines.append(f"| {name} | {' | '.join(by_concept)} |")
        lines += [
            "\n## Rank search on the tuning concept",
            "| seed | s | parameters | bytes | images | L1 |\n|---|---|---|---|---|---|",
        ]
        for seed, search in enumerate(searches):
            kept = yaml.safe_load((search.folder / "ranks.yaml").read_text())
            for row in json.loads((search.folder / "rank_search.json").read_text()):
                mark = " (kept)" if row.get("ranks") == kept else ""
                lines.append(
                    f"| {seed} | {row['factor'] or 'base'}{mark} | {row.get('parameters', '')} | "
                    f"{row.get('bytes', '')} | {row['images']} | {row['figures']['val/reconstruction']:.4f} |"
                )
        lines += [
            "\n## Learning rates",
            f"On {TUNING}, seed 0, {IMAGES:,} images, L1 on validation photos; the least is taken. lora's, tuned at "
            "s = 2, serves the searched and the random ranks, half of the photos and the short base.\n",
        ]
        lines += [
            f"* {method}: " + ", ".join(f"{rate:g}: {self.tuning[method, rate]:.4f}" for rate in tried)
            + f" → {rates[method]:g}"
            for method, tried in RATES.items()
        ]  # fmt: skip
        lines += [
            "\n## The bases",
            "| kind | seed | images | L1 on its own concepts | SSIM | concepts |\n|---|---|---|---|---|---|",
        ]
        for kind in KINDS:
            for seed in self.seeds:
                row = self.base(kind, seed).result()[-1]
                lines.append(
                    f"| {kind} | {seed} | {row['images']:,.0f} | {row['reconstruction']:.3f} | {row['ssim']:.3f} | "
                    f"{', '.join(read_selection(self.concepts_of(kind, seed)))} |"
                )
        return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    page = Benchmark(options.pairs.resolve(), options.out.resolve(), options.seeds, options.processes).run()
    (options.out / "page.md").write_text(page + "\n")
    print(page)
