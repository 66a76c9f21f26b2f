r"""What do zeros cost a base, and does it matter how they come? Pruning and 2:4 at equal images.

pocketgan predict -c configs/synthesize/style_transfer.yaml --model.teacher.style '[0,6,12,20]' \
    --model.teacher.size 256 --model.size 64 --data.root PHOTOS --data.limit null --trainer.default_root_dir PAIRS
python -m benchmarks.sparsity --pairs PAIRS --out FOLDER
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.runs import Run, command_block, commit, mean_and_spread, train_all

CONCEPTS = ("style_00", "style_06", "style_12", "style_20")
COLUMNS = {"reconstruction": "L1", "kid_lite0": "kid_lite0", "ssim": "ssim"}
DENSE = "dense"
PLAIN_DECAY, DECAY = 0.0, 2e-4


def pruning(sparsity: float, start: float, end: float | None = None) -> Callable[[int], dict[str, Any]]:
    """ProgressiveSparsity from one share of the images to another, or at once."""

    def callback(images: int) -> dict[str, Any]:
        first = round(start * images)
        last = first + 1 if end is None else round(end * images)
        arguments = {
            "final_sparsity": sparsity,
            "initial_sparsity": sparsity if end is None else 0.0,
            "start_images": first,
            "end_images": last,
            "every_images": max(images // 100, 1),
        }
        return {"class_path": "ProgressiveSparsity", "init_args": arguments}

    return callback


def ladder(decay: float, *stages: tuple[float, int, int]) -> Callable[[int], dict[str, Any]]:
    """NToMSparsity with stages (share of the images, N, M)."""

    def callback(images: int) -> dict[str, Any]:
        found = [
            {"start_images": round(share * images), "kept": kept, "group_size": group} for share, kept, group in stages
        ]
        return {"class_path": "NToMSparsity", "init_args": {"ladder": found, "decay": decay}}

    return callback


# half of the images before what comes at once, half after; what grows ends at two thirds
CANDIDATES: dict[str, Callable[[int], dict[str, Any]]] = {
    "80 %, progressive": pruning(0.8, 1 / 6, 2 / 3),
    "90 %, progressive": pruning(0.9, 1 / 6, 2 / 3),
    "90 %, at once at half, fine-tuned": pruning(0.9, 1 / 2),
    "90 %, at the end, not fine-tuned": pruning(0.9, 1.0),
    "2:4, ladder, SR-STE": ladder(DECAY, (1 / 6, 15, 16), (1 / 3, 7, 8), (1 / 2, 3, 4), (2 / 3, 2, 4)),
    "2:4, at once at half, SR-STE": ladder(DECAY, (1 / 2, 2, 4)),
    "2:4, at once at half, plain STE": ladder(PLAIN_DECAY, (1 / 2, 2, 4)),
    "2:4, at the end, not fine-tuned": ladder(DECAY, (1.0, 2, 4)),
}


class Benchmark:
    """Bases by seed and candidate."""

    def __init__(self, pairs: Path, out: Path, seeds: int, images: int) -> None:
        self.pairs, self.out, self.seeds, self.images = pairs, out, range(seeds), images

    def base(self, candidate: str, seed: int) -> Run:
        made = CANDIDATES.get(candidate)
        callbacks = "null" if made is None else json.dumps([made(self.images)])
        name = "".join(letter if letter.isalnum() else "_" for letter in candidate)
        return Run(
            self.out / f"{name}_{self.images}_{seed}",
            "configs/base_gan/small.yaml",
            (
                f"--seed_everything={seed}",
                f"--data.root={self.pairs}",
                f"--data.concepts=[{','.join(CONCEPTS)}]",
                f"--trainer.callbacks={callbacks}",
            ),
            (self.images,),
        )

    def zeros(self, candidate: str) -> float:
        """Share of zeros in the first seed's averaged generator, of the masked layers."""
        from lightning_modules import load_run
        from pocketgan.compression import masked_share

        return masked_share(load_run(self.base(candidate, 0).folder).generator_ema)

    def page(self) -> str:
        """Train everything that is not there yet; the committed Markdown."""
        candidates = [DENSE, *CANDIDATES]
        train_all([self.base(candidate, seed) for candidate in candidates for seed in self.seeds], 2)
        found = {name: [self.base(name, seed).result()[-1] for seed in self.seeds] for name in candidates}
        lines = []
        for name, rows in found.items():
            cells = [f"{100 * self.zeros(name):.1f} %"]
            cells += [mean_and_spread([row[column] for row in rows]) for column in COLUMNS]
            pairs = list(zip(rows, found[DENSE], strict=True))
            for column in ("reconstruction", "kid_lite0"):
                differences = [row[column] - dense[column] for row, dense in pairs]
                cells.append("" if name == DENSE else mean_and_spread(differences))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        shown = found[DENSE][0]["images_per_concept"]
        return (
            "# What do zeros cost a base, and does it matter how they come?\n\n"
            f"64 px, width 16, {len(CONCEPTS)} concepts, {self.images:,} images for every row, {len(self.seeds)} "
            "seeds: mean ± standard deviation; differences to dense are paired by seed. "
            f"N = {shown:.0f} test photos a concept. "
            "Zeros are of the masked layers: all convolutions and linear layers but stem and head. What comes at once "
            "comes after half of the images, what grows is there after two thirds. Time is not measured: a sparse "
            "network is exported with the dense one's shape. "
            f"Commit {commit()}.\n\n{command_block(__doc__)}\n\n"
            f"| zeros come | zeros | {' | '.join(COLUMNS.values())} | L1 - dense | kid_lite0 - dense |\n|---|"
            + "---|" * (len(COLUMNS) + 3)
            + "\n"
            + "\n".join(lines)
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=2_400)
    options = parser.parse_args()
    print(Benchmark(options.pairs.resolve(), options.out.resolve(), options.seeds, options.images).page())
