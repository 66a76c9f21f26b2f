"""The pairs of a source, before any picture is read: where their pictures are and on which side of the split."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pocketgan.files import sha256_of
from pocketgan.images import IMAGE_SUFFIXES, load_photo
from pocketgan.pair_set import Pair, as_name, read_pairs

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class PairFile:
    """One pair of a source: where its two pictures are, and on which side of the split its photo stands.

    Attributes:
        concept: Name of the edit.
        prompt: Its text.
        photo: File of the photo.
        edit: File of the edit; the same file as ``photo`` where both stand side by side in one picture.
        group: Pairs of one group come from one photo and stay on one side of the split.
        split: The side that the source itself gives, if it gives one.
        sha256: Expected digests of the two files, where the source has them.
    """

    concept: str
    prompt: str
    photo: Path
    edit: Path
    group: str
    split: Split | None = None
    sha256: tuple[str, str] | None = None


def pairs_of_pair_set(root: Path) -> list[PairFile]:
    """List a pair set's pairs, those that were dropped left out."""
    return pair_files(read_pairs(root), root)


def pair_files(pairs: list[Pair], root: Path) -> list[PairFile]:
    """Group pairs: crops of one source photo form one group, and so do equal photos of two names.

    Args:
        pairs: Of one set.
        root: Of the set.

    Returns:
        In the order given.
    """
    nodes = {name: number for number, name in enumerate({key for pair in pairs for key in _photo_keys(pair)})}
    edges = np.array([[nodes[key] for key in _photo_keys(pair)] for pair in pairs]).reshape(-1, 2).T
    graph = coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=False)[1]
    # named after its first photo, so that the name does not depend on numbering
    group: dict[int, str] = {}
    for pair in pairs:
        group.setdefault(component[nodes[_photo_keys(pair)[0]]], pair.source or pair.photo_sha256)
    return [
        PairFile(
            concept=pair.concept,
            prompt=pair.prompt,
            photo=root / pair.photo_file_name,
            edit=root / pair.edit_file_name,
            group=group[component[nodes[_photo_keys(pair)[0]]]],
            sha256=(pair.photo_sha256, pair.edit_sha256),
        )
        for pair in pairs
    ]


def _photo_keys(pair: Pair) -> tuple[str, str]:
    return f"sha256:{pair.photo_sha256}", f"source:{pair.source or pair.photo_sha256}"


def is_aligned_folder(root: Path) -> bool:
    """Whether a folder has the layout that ``pairs_of_aligned_folder`` reads."""
    return bool(_aligned_folders(root))


def _aligned_folders(root: Path) -> list[Path]:
    folders = [root, *sorted(folder for folder in root.glob("[!.]*") if folder.is_dir())]
    found = [folder for folder in folders if (folder / "train").is_dir()]
    return [root] if root in found else found


def pairs_of_aligned_folder(root: Path) -> list[PairFile]:
    """List the pictures of pytorch-CycleGAN-and-pix2pix's aligned layout: photo left, edit right, in train, val, test.

    The one concept is named after the folder. A folder that holds several such folders has a concept in each; pictures
    of one name in them are of one photo. A folder with train alone is split by photo.

    Raises:
        ValueError: There is no train, or one of val and test without the other.
    """
    return [pair for folder in _aligned_folders(root) for pair in _pairs_of_one_concept(folder)]


def _pairs_of_one_concept(root: Path) -> list[PairFile]:
    concept = as_name(root.name)
    pairs = [
        PairFile(concept, root.name, file, file, f"{split}/{file.name}", split)
        for split in SPLITS
        for file in sorted((root / split).glob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    given = {pair.split for pair in pairs}
    if given == {"train"}:
        return [PairFile(pair.concept, pair.prompt, pair.photo, pair.edit, pair.group) for pair in pairs]
    missing = ", ".join(split for split in SPLITS if split not in given)
    if missing:
        raise ValueError(
            f"aligned folder {root} has no pictures under {missing}; give train alone, or train, val and test"
        )
    return pairs


def checked_file(file: Path, sha256: str | None) -> Path:
    """A picture of a pair set, as it was written.

    Args:
        file: The picture.
        sha256: Its digest, or None where the source has none.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It has changed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, pairs.jsonl names it; run the synthesis again")
    if sha256 is not None and sha256_of(file) != sha256:
        raise ValueError(
            f"{file} is not the file that was written: its sha256 differs from pairs.jsonl; delete it and run the "
            "synthesis again, which makes it anew"
        )
    return file


def side_by_side(file: Path) -> tuple[Image.Image, Image.Image]:
    """Photo and edit of an aligned picture.

    Raises:
        UnreadableImageError: It is no picture.
        ValueError: Its width is odd.
    """
    picture = load_photo(file).image
    if picture.width % 2:
        raise ValueError(f"{file} is {picture.width} px wide; photo and edit side by side need an even width")
    half = picture.width // 2
    return picture.crop((0, 0, half, picture.height)), picture.crop((half, 0, picture.width, picture.height))


def check_fractions(split: tuple[float, float, float]) -> None:
    """Refuse fractions for train, val and test that make no split.

    Raises:
        ValueError: One is below 0, the first is 0, or they do not add up to 1.
    """
    if min(split) < 0 or abs(sum(split) - 1) > 1e-6 or not split[0]:
        raise ValueError(f"split {split} must be three fractions that add up to 1, the first above 0")


def split_of_groups(groups: set[str], fractions: tuple[float, float, float], seed: int) -> dict[str, Split]:
    """Deal groups to train, val and test in the order of a seeded hash, so that a group's side needs no file.

    Each of val and test gets at least one group where its fraction is above 0.

    Raises:
        ValueError: Nothing would be left for train.
    """
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    held_out = [max(round(fraction * len(order)), 1) if fraction else 0 for fraction in fractions[1:]]
    if sum(held_out) >= len(order):
        raise ValueError(
            f"{len(order)} photos cannot be split into train, val and test; give at least {sum(held_out) + 1}"
        )
    sides: list[Split] = [*["val"] * held_out[0], *["test"] * held_out[1]]  # type: ignore[list-item]
    return {group: sides[place] if place < len(sides) else "train" for place, group in enumerate(order)}
