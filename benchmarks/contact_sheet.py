"""The contact sheet of docs/pairs.md: pairs of a set, some of them spoilt on purpose, as the gates judge them.

python -m benchmarks.contact_sheet --pairs pocketgan_quickstart/pairs --out FOLDER
pocketgan pairs inspect FOLDER/set --out docs/images/contact_sheet.png
"""

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from pocketgan.gates import AlignmentGate, ExposureGate, NearDuplicateGate, StructureGate
from pocketgan.gates.registration import Similarity, moved_back
from pocketgan.images import load_photo, to_tensor
from pocketgan.pair_set import read_manifest, read_pairs
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter

CONCEPT, COUNT = "style_19", 18
# by the photo's place: pixels right and down, scale, degrees
MOVED = {
    2: Similarity(9, -4),
    5: Similarity(0, 0, 1.08, 0),
    8: Similarity(0, 0, 1, 6),
    11: Similarity(-14, 6, 0.95, -3),
}
BLACK, UNCHANGED, OF_ANOTHER_PHOTO, COLLAPSED = 3, 6, 9, (13, 15)


def spoilt(place: int, photo: Tensor, edit: Tensor, others: list[Tensor]) -> Tensor:
    """The edit (3, H, W) of the photo at a place, with its fault if it gets one."""
    if place in MOVED:
        return torch.from_numpy(moved_back(edit.numpy(), MOVED[place], edit.shape[-1])).clamp(-1, 1)
    if place == BLACK:
        return torch.full_like(edit, -1)
    if place == UNCHANGED:
        return photo
    if place == OF_ANOTHER_PHOTO:
        return others[place + 3]
    return others[COLLAPSED[0] - 1] if place in COLLAPSED else edit


def main(source: Path, out: Path) -> None:
    """Write the set."""
    gates = {
        "exposure": ExposureGate(),
        "near_duplicate": NearDuplicateGate(),
        "alignment": AlignmentGate(),
        "structure": StructureGate(),
    }
    manifest = read_manifest(source)
    settings = {key: value for key, value in manifest.items() if key not in {"format", "hash"}}
    # every third: neighbours are crops of one photo
    pairs = [pair for pair in read_pairs(source) if pair.concept == CONCEPT][:: len(manifest["concepts"])][:COUNT]
    pictures = [
        [to_tensor(load_photo(source / name).image) for name in (pair.photo_file_name, pair.edit_file_name)]
        for pair in pairs
    ]
    shutil.rmtree(out / "set", ignore_errors=True)
    edits = [edit for _, edit in pictures]
    with PairSetWriter(out / "set", settings, gates=gates) as writer:
        for place, (pair, (photo, edit)) in enumerate(zip(pairs, pictures, strict=True)):
            writer.write([EditedPhoto(pair.id, CONCEPT, pair.prompt, photo, spoilt(place, photo, edit, edits))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    main(options.pairs, options.out)
