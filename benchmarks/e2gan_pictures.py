r"""What does E2GAN make at 128 px? The README's picture, on photos that no training saw, and its adapters' figures.

pocketgan select concepts POOL --count 6 --out concepts.txt --split '[0.6,0.2,0.2]'
pocketgan fit -c configs/base_gan/small.yaml --model.generator.width 32 --data.root POOL --data.concepts concepts.txt \
    --data.split '[0.6,0.2,0.2]' --budget.images 16000 --trainer.default_root_dir BASE
pocketgan adapt --base BASE --pairs POOL --concepts style_18,style_19,style_21,style_22,style_24 --out ADAPTERS \
    --config configs/lora_adaptation/rank_search.yaml --fit_options '[--early_stopping=null]'
python -m benchmarks.e2gan_pictures --base BASE --adapters ADAPTERS --out docs/images/e2gan.png
"""

import argparse
import csv
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import center_crop, resize

from benchmarks.runs import command_block
from datamodules.source_photos import BUNDLED_PHOTOS
from lightning_modules import load_concepts, trained_data_of
from pocketgan.images import load_photo, to_image, to_tensor
from pocketgan.report import comparison_sheet
from pocketgan.run_folder import last_figures
from pocketgan.teachers import StyleTransferTeacher

PHOTOS = {"china.jpg": "sklearn", "coffee.png": "skimage", "chelsea.png": "skimage"}
TEACHER_SIZE = 512


def bundled_photo(name: str) -> Tensor:
    """The largest centred square (1, 3, 512, 512) in [-1, 1] of a photo that an installed package brings along."""
    package = PHOTOS[name]
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    photo = to_tensor(load_photo(Path(spec.origin).parent / BUNDLED_PHOTOS[package][0] / name).image)
    square = center_crop(photo, [min(photo.shape[1:])] * 2)
    return resize(square[None], [TEACHER_SIZE] * 2, antialias=True).clamp(-1, 1)


@torch.no_grad()
def sheet(base: Path, adapters: Path) -> Image.Image:
    """Photo, teacher and GAN for each photo; a row for each adapter."""
    size = trained_data_of(base)["size"]
    folders = sorted(folder for folder in adapters.iterdir() if (folder / "adapter").is_dir())
    model = load_concepts(base, folders)
    photos = {name: bundled_photo(name) for name in PHOTOS}
    columns: dict[str, list[Image.Image]] = {}
    for folder in folders:
        concept = folder.name
        model.use(concept)
        teacher = StyleTransferTeacher(int(concept.removeprefix("style_")), TEACHER_SIZE)
        for number, photo in enumerate(photos.values(), start=1):
            small = resize(photo, [size, size], antialias=True).clamp(-1, 1)
            taught = teacher.edit(photo, teacher.concepts[concept], [0])
            columns.setdefault(f"photo {number}", []).append(to_image(small[0]))
            columns.setdefault(f"teacher {number}", []).append(
                to_image(resize(taught, [size, size], antialias=True).clamp(-1, 1)[0])
            )
            columns.setdefault(f"pocketgan {number}", []).append(to_image(model(small)[0]))
    return comparison_sheet(columns, size)


def page(base: Path, adapters: Path, picture: Path) -> str:
    """The committed Markdown, from the table that ``pocketgan adapt`` left."""
    figures = ("images", "bytes", "reconstruction", "ssim", "psnr", "kid_lite0", "kid_lite0_low", "kid_lite0_high")
    with (adapters / "adapters.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = [
        f"| {row['concept']} | " + " | ".join(f"{float(row[name]):.6g}" for name in figures) + " |" for row in rows
    ]
    photos = float(rows[0]["images_per_concept"])
    return (
        f"# What does E2GAN make at 128 px?\n\n{command_block(__doc__)}\n\n"
        f"128 px, width 32, one run: a base on {last_figures(base, 'val')['images']:,.0f} images, adapters with the "
        f"ranks that the first one's search kept. Figures on N = {photos:.0f} test photos a concept; the bounds of "
        f"kid_lite0 are 95 % over images.\n\n| concept | "
        + " | ".join(figures)
        + " |\n|---|"
        + "---|" * len(figures)
        + "\n"
        + "\n".join(lines)
        + f"\n\n![pictures](../docs/images/{picture.name})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    sheet(options.base, options.adapters).save(options.out)
    print(page(options.base, options.adapters, options.out))
