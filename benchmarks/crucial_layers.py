"""Which layers of a base are worth adapting? Each group of layers alone, at equal images.

python -m benchmarks.crucial_layers --pairs POOL --bases FOLDER --out FOLDER --picture docs/images/crucial_layers.png

FOLDER of the bases is the one that benchmarks/e2gan.py made.
"""

import argparse
import json
import statistics
from pathlib import Path

from matplotlib import pyplot as plt

from benchmarks.runs import SPLIT, Run, command_block, commit, mean_and_spread, train_all
from pocketgan.run_folder import last_figures

# held out of the bases, and none of those that benchmarks/e2gan.py reports
CONCEPTS, SEEDS, IMAGES, RATE = ("style_20", "style_23"), (0, 1), 800, 4e-3
TRANSFORMER = ("transformer_down", "transformer", "transformer_up")
CHOICE = ("down", *TRANSFORMER, "up")
GROUPS: dict[str, tuple[str, ...]] = {
    "stem": ("stem",),
    "down": ("down",),
    "residual blocks": ("blocks_before", "blocks_after"),
    "transformer_down": ("transformer_down",),
    "self-attention": ("transformer.self_attention",),
    "cross-attention": ("transformer.cross_attention",),
    "feed-forward": ("transformer.feed_forward",),
    "transformer_up": ("transformer_up",),
    "up": ("up",),
    "head": ("head",),
    "E2GAN's choice": CHOICE,
    "E2GAN's choice, stem and head in full": CHOICE,
    "all layers": (*CHOICE, "stem", "head", "blocks_before", "blocks_after"),
}


def rank_of(part: str) -> int:
    """Rank 4, or the full rank where that is less."""
    return 3 if part == "head" else 4


def make_run(pairs: Path, bases: Path, out: Path, group: str, concept: str, seed: int) -> Run:
    """The training of one group on one concept."""
    return Run(
        out / f"{group.replace(' ', '_').replace(',', '')}_{concept}_{seed}",
        "configs/lora_adaptation/small.yaml",
        (
            f"--seed_everything={seed}",
            f"--data.root={pairs}",
            f"--data.concepts=[{concept}]",
            f"--model.base={bases / f'base_clustered_{seed}'}",
            f"--model.ranks={json.dumps({part: rank_of(part) for part in GROUPS[group]})}",
            f"--model.full_layers={'[stem,head]' if 'in full' in group else '[]'}",
            f"--model.generator_optimizer.lr={RATE}",
            "--early_stopping=null",
        ),
        (IMAGES,),
    )


def unadapted(pairs: Path, base: Path, concept: str) -> float:
    """Validation L1 of the base itself on a new concept, whose tokens are the mean of those known."""
    import torch

    from datamodules import PairedImages
    from lightning_modules import load_run

    model = load_run(base)
    model.add_concepts({concept: concept})
    data = PairedImages(pairs, [concept], 64, split=tuple(json.loads(SPLIT)))
    data.setup("validate")
    distances = []
    with torch.no_grad():
        for batch in data.val_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)  # noqa: PLW2901
            fake = model(batch["photo"], batch["concept"])
            distances.append((fake - batch["edit"]).abs().mean((1, 2, 3)))
    return torch.cat(distances).mean().item()


def draw(shares: dict[str, list[float]], file: Path) -> None:
    """Bars of what each group gains, as a share of what all layers gain on the same concept and seed."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    names = list(shares)[::-1]
    means = [100 * statistics.mean(shares[name]) for name in names]
    spreads = [100 * statistics.stdev(shares[name]) for name in names]
    colours = ["tab:blue" if len(GROUPS[name]) < 3 else "tab:gray" for name in names]
    axes.barh(names, means, xerr=spreads, color=colours, capsize=3)
    axes.set_xlabel(f"% of what all layers gain in L1 in {IMAGES} images")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--bases", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    pairs, bases, out = options.pairs.resolve(), options.bases.resolve(), options.out.resolve()
    cells = [(concept, seed) for concept in CONCEPTS for seed in SEEDS]
    runs = {(group, *cell): make_run(pairs, bases, out, group, *cell) for cell in cells for group in GROUPS}
    train_all(runs.values(), 2)
    before = {(concept, seed): unadapted(pairs, bases / f"base_clustered_{seed}", concept) for concept, seed in cells}
    results = {key: {**run.result()[-1], **last_figures(run.folder, "val")} for key, run in runs.items()}
    gains = {group: [before[cell] - results[(group, *cell)]["reconstruction"] for cell in cells] for group in GROUPS}
    shares = {
        group: [gain / whole for gain, whole in zip(gains[group], gains["all layers"], strict=True)] for group in GROUPS
    }
    draw(shares, options.picture)
    print(
        "# Which layers are worth adapting?\n\n"
        f"64 px, width 16, LoRA of rank 4 (head: 3) on one group alone, {IMAGES} images, concepts "
        f"{', '.join(CONCEPTS)}, {len(SEEDS)} seeds: mean ± standard deviation over {len(cells)} runs, learning "
        f"rate {RATE:g} in all. The concept's tokens train in every row, so that the least of the rows bounds what "
        "they gain alone. "
        f"L1 of the base before: {mean_and_spread(list(before.values()))}. "
        f"N = {next(iter(results.values()))['images_per_concept']:.0f} validation photos. Commit {commit()}."
        f"\n\n{command_block(__doc__)}\n\n"
        "| layers | L1 | L1 gained over the base | share of the gain of all layers | trainable |\n|---|---|---|---|---|"
    )
    for group in GROUPS:
        rows = [results[(group, *cell)] for cell in cells]
        print(
            f"| {group} | {mean_and_spread([row['reconstruction'] for row in rows])} | "
            f"{mean_and_spread(gains[group])} | "
            f"{statistics.mean(shares[group]):.0%} ± {statistics.stdev(shares[group]):.0%} | "
            f"{rows[0]['parameters']:,.0f} |"
        )
