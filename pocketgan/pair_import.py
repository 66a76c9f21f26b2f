"""A user's own pairs as a pair set."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.progress import track

from pocketgan.files import sha256_of
from pocketgan.images import IMAGE_SUFFIXES, UnreadableImageError, centred_square, load_photo, to_tensor
from pocketgan.pair_set import as_name
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter
from pocketgan.text.prompts import check_known

PHOTOS, EDITS = "photos", "edits"


@dataclass(frozen=True)
class FoundPair:
    """A photo and one of its edits, as files.

    Attributes:
        id: The photo's name within the set.
        concept: Name of the edit.
        photo: File.
        edit: File.
    """

    id: str
    concept: str
    photo: Path
    edit: Path


def find_pairs(source: Path, concept: str | None) -> list[FoundPair]:
    """Pair ``photos/NAME`` with ``edits/NAME`` or ``edits/CONCEPT/NAME``; suffixes may differ.

    Args:
        source: Folder with ``photos`` and ``edits``.
        concept: Name of the edits that lie in ``edits`` itself.

    Returns:
        Sorted by concept and id.

    Raises:
        FileNotFoundError: A folder is missing or holds no pictures.
        ValueError: An edit has no photo, two files have one name, or a name is missing or given in vain.
    """
    photos = _by_name(source / PHOTOS)
    flat = _by_name(source / EDITS, may_be_empty=True)
    edits = {folder.name: _by_name(folder) for folder in sorted((source / EDITS).iterdir()) if _is_concept(folder)}
    if flat and edits:
        raise ValueError(
            f"{source / EDITS} holds pictures and folders ({', '.join(edits)}); put the pictures into a folder named "
            "after their concept"
        )
    if not flat and not edits:
        raise FileNotFoundError(f"{source / EDITS} holds no edits; put them there, or into a folder for each concept")
    if flat and concept is None:
        raise ValueError(f"the edits in {source / EDITS} have no name; give one with --concept")
    if edits and concept is not None:
        raise ValueError(f"the concepts are named by the folders of {source / EDITS}; leave --concept out")
    edits = edits or {str(concept): flat}
    lonely = [edit for found in edits.values() for name, edit in found.items() if name not in photos]
    if lonely:
        raise ValueError(
            f"{len(lonely)} edits have no photo of their name in {source / PHOTOS}, such as {lonely[0]}; rename or "
            "remove them"
        )
    return [
        FoundPair(as_name(name), named, photos[name], edit)
        for named, found in edits.items()
        for name, edit in found.items()
    ]


def import_pairs(
    source: Path,
    root: Path,
    concept: str | None = None,
    prompts: dict[str, str] | None = None,
    size: int = 256,
    image_format: Literal["png", "jpeg"] = "png",
) -> tuple[int, dict[Path, str]]:
    """Write a user's pairs as a pair set; started again, it goes on.

    Photo and edit must be of one size. Of both, the largest centred square is scaled to ``size``.

    Args:
        source: See ``find_pairs``.
        root: The pair set; made if it does not exist.
        concept: See ``find_pairs``.
        prompts: Text of each concept; its name where there is none.
        size: Side in pixels that is stored.
        image_format: Of the stored files.

    Returns:
        Number of pairs in the set, and the edits that were left out with the reason: unreadable, too small, or of
        another size than the photo.

    Raises:
        FileNotFoundError: See ``find_pairs``.
        ValueError: See ``find_pairs``; two photos get one id, a prompt is of an unknown concept, no pair can be used,
            or the set was made of other files or with another size.
    """
    pairs = find_pairs(source, concept)
    names = sorted({pair.concept for pair in pairs})
    check_known(prompts or {}, names)
    photo_of: dict[str, Path] = {}
    for pair in pairs:
        if photo_of.setdefault(pair.id, pair.photo) != pair.photo:
            raise ValueError(f"{photo_of[pair.id]} and {pair.photo} would both be called {pair.id}; rename one")
    prompt_of = {name: (prompts or {}).get(name, name) for name in names}
    files = [(file.relative_to(source).as_posix(), sha256_of(file)) for file in sorted(photo_of.values())]
    settings = {
        "teacher": {"name": "import"},
        "photos": {"sha256": hashlib.sha256(json.dumps(files).encode()).hexdigest()},
        "concepts": {name: {"prompt": prompt} for name, prompt in prompt_of.items()},
        "size": size,
        "image_format": image_format,
        "seed": 0,
        "versions": {},
    }
    left_out: dict[Path, str] = {}
    with PairSetWriter(root, settings) as writer:
        for pair in track(pairs, f"importing {source.name}"):
            if (pair.concept, pair.id) in writer.pairs:
                continue
            try:
                photo, edit = (load_photo(file, minimum_side=size).image for file in (pair.photo, pair.edit))
            except UnreadableImageError as error:
                left_out[pair.edit] = str(error)
                continue
            if photo.size != edit.size:
                sizes = f"{edit.width}×{edit.height}, its photo {photo.width}×{photo.height}"
                left_out[pair.edit] = f"{pair.edit}: {sizes}; both must be of one size"
                continue
            small, small_edit = (to_tensor(centred_square(image, size)) for image in (photo, edit))
            writer.write([EditedPhoto(pair.id, pair.concept, prompt_of[pair.concept], small, small_edit)])
    if not writer.pairs:
        raise ValueError("no pair can be used:\n  " + "\n  ".join(list(left_out.values())[:5]))
    return len(writer.pairs), left_out


def _is_concept(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".")


def _by_name(folder: Path, may_be_empty: bool = False) -> dict[str, Path]:
    """Pictures that lie in a folder itself, by their name without suffix."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one that holds {PHOTOS}/ and {EDITS}/")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith(".") or not file.is_file():
            continue
        if file.stem in found:
            raise ValueError(f"{found[file.stem]} and {file} have one name; rename one")
        found[file.stem] = file
    if not found and not may_be_empty:
        raise FileNotFoundError(f"{folder} holds no pictures; accepted are {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found
