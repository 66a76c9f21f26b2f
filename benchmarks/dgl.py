"""Which of DGL-GAN's claims hold for a paired GAN at 64 px, and a small StyleGAN2 and BigGAN at 32 px?

python -m benchmarks.dgl --pairs POOL --out FOLDER

POOL is the pair set that benchmarks/e2gan.py names; crops of its photos and generated shapes are made in FOLDER. A
second start goes on where the first ended.
"""

import argparse
import os
import random
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
from PIL import Image
from scipy.stats import t as student_t

from benchmarks.diffusion_world import COLOURS, SHAPES, draw
from benchmarks.runs import QUIET, SETTING, Run, command_block, commit, mean_and_spread, paired_difference, train_all
from pocketgan.images import find_images, to_image

CONCEPT, SIZE, PICTURES = "style_20", 32, 3000
STAGE_ONE, PLAIN, GUIDED, RANDOM, ONE_STAGE = (
    "stage one",
    "stage two, λ = 0",
    "stage two, λ = 0.1",
    "stage two, random teacher, λ = 0.1",
    "one stage, λ = 0.1",
)
COMPARED = (
    (GUIDED, PLAIN),
    (RANDOM, PLAIN),
    (ONE_STAGE, PLAIN),
    (STAGE_ONE, PLAIN),
    (GUIDED, RANDOM),
    (GUIDED, ONE_STAGE),
)
DIGITS = {"reconstruction": 4, "fd_lite0": 1, "kid_lite0": 4}
# a run of λ = 0 is the plain GAN bit for bit; without the teacher it does not pay for its judgement
STAGE_TWO = {PLAIN: ("--model.teacher=null",), GUIDED: (), RANDOM: ("--model.random_teacher=true",)}
# validation is not looked at
UNPAIRED = ("--data.split=[0.92,0.01,0.07]", *QUIET)


@dataclass(frozen=True)
class System:
    """A kind of GAN, its teacher and its students.

    Attributes:
        name: Part of the run folders' names.
        title: Heading on the page.
        teacher_config: YAML of the teacher.
        config: YAMLs of the students, with the stage's number to be filled in.
        setting: Arguments of all runs of the system.
        teacher: Arguments of the teacher.
        students: Arguments of each student, by name.
        teacher_images: Images that the teacher sees.
        images: Images of stage one and stage two.
        batch: Images in a batch.
        columns: Figures on the page by name in ``result.json``; less is better.
    """

    name: str
    title: str
    teacher_config: str
    config: str
    setting: tuple[str, ...]
    teacher: tuple[str, ...]
    students: dict[str, tuple[str, ...]]
    teacher_images: int
    images: tuple[int, int]
    batch: int
    columns: dict[str, str]


def systems(pairs: Path, out: Path) -> list[System]:
    """The three systems over a pair set and pictures in ``out``."""
    distances = {"fd_lite0": "fd_lite0", "kid_lite0": "kid_lite0"}
    return [
        System(
            "paired",
            "Paired GAN, 64 px",
            "configs/base_gan/small.yaml",
            "configs/dgl_compression/paired_stage{}.yaml",
            (*SETTING, f"--data.root={pairs}", f"--data.concepts=[{CONCEPT}]"),
            ("--model.generator.width=32", "--model.discriminator.width=32"),
            {"width 16": ("--model.generator.width=16",), "width 8": ("--model.generator.width=8",)},
            3600,
            (1200, 600),
            4,
            {"reconstruction": "L1", **distances},
        ),
        System(
            "biggan",
            "BigGAN, 32 px, shapes in classes",
            "configs/dgl_compression/biggan_small_stage1.yaml",
            "configs/dgl_compression/biggan_small_stage{}.yaml",
            (
                *UNPAIRED,
                f"--data.root={out / 'shapes'}",
                "--data.batch_size=16",
                f"--model.generator.classes={len(SHAPES)}",
                "--model.discriminator.width=8",
                "--model.generator_optimizer.lr=1e-3",
                "--model.discriminator_optimizer.lr=1e-3",
                "--trainer.precision=bf16-mixed",
            ),
            # with the students' rate its generator collapses within 12,000 images, at 5e-4 for both, too
            ("--model.generator.width=8", "--model.generator_optimizer.lr=2.5e-4"),
            {"half width": ("--model.generator.width=4",)},
            12_000,
            (4000, 2000),
            16,
            distances,
        ),
        System(
            "stylegan2",
            "StyleGAN2, 32 px, crops of photos",
            "configs/dgl_compression/stylegan2_small_stage1.yaml",
            "configs/dgl_compression/stylegan2_small_stage{}.yaml",
            (
                *UNPAIRED,
                f"--data.root={out / 'crops'}",
                "--model.generator.channel_base=512",
                # also the YAML's own since this was measured
                "--model.generator.noise=false",
                "--model.discriminator_regularization.gamma=0.3",
            ),
            ("--model.generator.channel_multiplier=1",),
            {"half width": ()},
            12_000,
            (4800, 2400),
            16,
            distances,
        ),
    ]


def make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Fill a folder whole or not at all."""
    if not folder.exists():
        building = folder.with_suffix(".building")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        make(building)
        building.rename(folder)


def make_crops(photos: list[Path], folder: Path) -> None:
    """Squares of random place, their side half to all of the photo's shorter one, the same number of each photo."""
    draws = random.Random(0)
    for number, photo in enumerate(islice(cycle(photos), PICTURES)):
        with Image.open(photo) as picture:
            side = draws.randint(min(picture.size) // 2, min(picture.size))
            left, top = (draws.randint(0, length - side) for length in picture.size)
            crop = picture.convert("RGB").resize(
                (SIZE, SIZE), Image.Resampling.LANCZOS, (left, top, left + side, top + side)
            )
        crop.save(folder / f"{number:04d}.png")


def make_shapes(folder: Path) -> None:
    """As many pictures of each shape, of random colours."""
    draws = torch.Generator().manual_seed(0)
    colours = list(COLOURS)
    for number, shape in enumerate(islice(cycle(SHAPES), PICTURES)):
        (folder / shape).mkdir(exist_ok=True)
        colour = colours[int(torch.randint(len(colours), (), generator=draws))]
        to_image(draw(colour, shape, draws, SIZE)).save(folder / shape / f"{number:04d}.png")


class Benchmark:
    """The runs of all systems below one folder."""

    def __init__(self, pairs: Path, out: Path, seeds: int) -> None:
        self.out, self.seeds = out, range(seeds)
        self.systems = systems(pairs, out)
        out.mkdir(parents=True, exist_ok=True)
        self.begun = out / "commit.txt"
        if not self.begun.exists():
            self.begun.write_text(commit())
        make_once(out / "crops", lambda folder: make_crops(find_images(pairs / "photos"), folder))
        make_once(out / "shapes", make_shapes)

    def teacher(self, system: System) -> Run:
        """One for all seeds of the students, as the paper has one."""
        return Run(
            self.out / f"{system.name}_teacher",
            system.teacher_config,
            ("--seed_everything=100", *system.teacher, "--trainer.callbacks=null"),
            (system.teacher_images,),
            setting=system.setting,
            batch=system.batch,
        )

    def arms(self, system: System, student: str, seed: int) -> dict[str, Run]:
        """A student's runs, each after the one that it starts from."""
        first, second = system.images

        def run(arm: str, stage: int, images: int, *more: str) -> Run:
            name = "_".join([system.name, student, arm, str(seed)])
            return Run(
                self.out / "".join(letter if letter.isalnum() else "_" for letter in name),
                system.config.format(stage),
                (f"--seed_everything={seed}", *system.students[student], "--trainer.callbacks=null", *more),
                (images,),
                setting=system.setting,
                batch=system.batch,
            )

        teacher = f"--model.teacher={self.teacher(system).folder}"
        start = run(STAGE_ONE, 1, first)
        two = {
            arm: run(arm, 2, second, f"--model.start={start.folder}", teacher, *more) for arm, more in STAGE_TWO.items()
        }
        return {STAGE_ONE: start, **two, ONE_STAGE: run(ONE_STAGE, 2, first + second, "--model.start=null", teacher)}

    def train(self) -> None:
        """Train everything that is not there yet."""
        # by system and seed, so that an interrupted benchmark is whole as far as it goes
        runs = [
            run
            for system in self.systems
            for run in [
                self.teacher(system),
                *(
                    run
                    for seed in self.seeds
                    for student in system.students
                    for run in self.arms(system, student, seed).values()
                ),
            ]
        ]
        train_all(runs, processes=1, threads=1)

    def whole_seeds(self, system: System) -> list[int]:
        """Seeds whose runs are all there."""
        return [
            seed
            for seed in self.seeds
            if all(run.is_done for student in system.students for run in self.arms(system, student, seed).values())
        ]

    def page(self) -> str:
        """The committed Markdown, of the systems with two whole seeds or more."""
        whole = [system for system in self.systems if len(self.whole_seeds(system)) > 1]
        return "\n".join(
            [
                "# Which of DGL-GAN's claims hold here?\n",
                "Several seeds of each student, one teacher for all of them: mean ± standard deviation over the seeds, "
                "which knows nothing of the spread between teachers. All figures are of the averaged "
                "generator on held-out images, less is better; distances are those of EfficientNet-Lite0's features, "
                f"not FID. Stage two of λ = 0 has the images of the others. Paired: {CONCEPT} of the pool, "
                f"{' '.join(SETTING[3:6])}. Crops: {PICTURES} of the pool's photos, so that a held-out crop's photo "
                f"has other crops in training. Shapes: {PICTURES} in {len(SHAPES)} classes. One process of one thread. "
                f"Begun at commit {self.begun.read_text()}, page "
                f"of {commit()}.\n",
                f"{command_block(__doc__)}\n",
                *(line for system in whole for line in self.section(system)),
            ]
        )

    def section(self, system: System) -> list[str]:
        """Tables of one system."""
        teacher = self.teacher(system).result()[-1]
        shown = teacher.get("images_per_concept", teacher.get("real_images", 0))
        first, second = system.images
        seeds = self.whole_seeds(system)
        seconds = teacher["seconds"]
        lines = [
            f"## {system.title}",
            f"{len(seeds)} seeds. N = {shown:.0f} held-out images, as many generated. Stage one has {first:,} images, "
            f"stage two {second:,} more, the teacher {system.teacher_images:,}; batch {system.batch}. "
            f"Teacher: `{' '.join(system.teacher)}`; "
            f"all: `{' '.join(word for word in system.setting if word.startswith('--model.')) or 'as in the YAML'}`.\n",
            f"| network | arm | images | {' | '.join(system.columns.values())} | generator's parameters |",
            "|---" * (len(system.columns) + 4) + "|",
            f"| teacher | | {system.teacher_images:,} | "
            + " | ".join(f"{teacher[column]:.{DIGITS[column]}f}" for column in system.columns)
            + f" | {teacher['parameters']:,.0f} |",
        ]
        compared = []
        for student in system.students:
            runs = [self.arms(system, student, seed) for seed in seeds]
            rows = {arm: [each[arm].result()[-1] for each in runs] for arm in runs[0]}
            seconds += sum(row["seconds"] for found in rows.values() for row in found)
            for arm, found in rows.items():
                images = first if arm == STAGE_ONE else first + second
                cells = [mean_and_spread([row[column] for row in found], DIGITS[column]) for column in system.columns]
                lines.append(
                    f"| {student} | {arm} | {images:,} | {' | '.join(cells)} | {found[0]['parameters']:,.0f} |"
                )
            for arm, other in COMPARED:
                cells = [
                    self.difference(*([row[column] for row in rows[each]] for each in (arm, other)), DIGITS[column])
                    for column in system.columns
                ]
                compared.append(f"| {student} | {arm} | {other} | {' | '.join(cells)} |")
        return [
            *lines,
            "\nDifferences of two arms, paired by seed: mean ± standard deviation (better in how many seeds); "
            "relative mean; better or worse where the 95 % t interval of the mean leaves 0 out.\n",
            f"| network | arm | less | {' | '.join(system.columns.values())} |",
            "|---" * (len(system.columns) + 3) + "|",
            *compared,
            f"\n{seconds / 60:.0f} minutes of training steps, others on the same cores.\n",
        ]

    @staticmethod
    def difference(values: list[float], others: list[float], digits: int = 4) -> str:
        """A cell of the second table."""
        differences = [value - other for value, other in zip(values, others, strict=True)]
        mean, count = statistics.mean(differences), len(differences)
        half = student_t.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5
        told = ("better" if mean < 0 else "worse") if abs(mean) > half else "not told"
        relative = 100 * mean / statistics.mean(others)
        return f"{paired_difference(values, others, digits=digits)}; {relative:+.1f} %; {told}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--page", action="store_true", help="train nothing: the page of the seeds that are whole")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    benchmark = Benchmark(options.pairs.resolve(), options.out.resolve(), options.seeds)
    if not options.page:
        benchmark.train()
    page = benchmark.page()
    (options.out / "page.md").write_text(page + "\n")
    print(page)
