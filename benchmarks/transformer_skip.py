"""Does the skip around the transformer help a narrow generator? Equal images, paired by seed.

python -m benchmarks.transformer_skip --pairs PAIR_SET --out FOLDER
"""

import argparse
from pathlib import Path

from benchmarks.runs import commit, mean_and_spread
from pocketgan.cli import main
from pocketgan.run_folder import last_figures

COLUMNS = ("reconstruction", "ssim", "kid_lite0")


def measure(pairs: Path, run: Path, width: int, skip: bool, seed: int, images: int, size: int) -> dict[str, float]:
    """Train one base on three styles and return its last validation figures."""
    main(
        [
            "fit",
            "-c=configs/base_gan/small.yaml",
            f"--seed_everything={seed}",
            f"--model.generator.width={width}",
            f"--model.generator.transformer_skip={str(skip).lower()}",
            f"--data.root={pairs}",
            "--data.concepts=[style_11,style_19,style_24]",
            f"--data.size={size}",
            "--data.split=[0.7,0.3,0.0]",
            f"--budget.images={images}",
            f"--trainer.val_check_interval={images // 8}",
            f"--trainer.default_root_dir={run}",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks=null",
        ]
    )
    return last_figures(run, "val")


def table(results: dict[tuple[int, bool], list[dict[str, float]]]) -> str:
    lines = ["| width | skip | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for (width, skip), runs in results.items():
        cells = [mean_and_spread([run[name] for run in runs]) for name in COLUMNS]
        lines.append(f"| {width} | {'yes' if skip else 'no'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    results = {
        (width, skip): [
            measure(
                options.pairs,
                options.out / f"{width}-{skip}-{seed}",
                width,
                skip,
                seed,
                options.images,
                options.size,
            )
            for seed in range(options.seeds)
        ]
        for width in options.widths
        for skip in (False, True)
    }
    first = next(iter(results.values()))[0]
    print(
        f"{options.size} px, {options.images} images, {options.seeds} seeds (mean ± standard deviation), "
        f"N = {first['images_per_concept']:.0f} validation photos a concept, commit {commit()}\n\n"
        f"{table(results)}"
    )
