"""Pair sets in the layouts of other tools, and back.

aligned      pytorch-CycleGAN-and-pix2pix: DIR/[CONCEPT/]train|val|test/<id>.png, photo left, edit right
imagefolder  Hugging Face datasets: DIR/train|validation|test/metadata.jsonl with photos and edits beside it
litdata      chunks that `StreamedPairs` reads from a folder or object storage

Each has a conversion.json with the manifest and the pairs' lines, so that the way back gives the same set,
but for dropped pairs and gates.json.
"""

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from rich.progress import track

from pocketgan.files import sha256_of, whole_folder, write_whole
from pocketgan.images import centred_square, load_photo, to_tensor
from pocketgan.pair_chunks import (
    CONVERSION_FILE_NAME,
    INDEX_FILE_NAME,
    Conversion,
    PairChunks,
    read_conversion,
    write_chunks,
)
from pocketgan.pair_files import (
    checked_file,
    is_aligned_folder,
    pair_files,
    pairs_of_aligned_folder,
    side_by_side,
    split_of_groups,
)
from pocketgan.pair_set import (
    MANIFEST_FILE_NAME,
    Pair,
    as_name,
    content_hash,
    is_unfinished,
    read_manifest,
    read_pairs,
    record_of,
)
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter
from pocketgan.text.prompts import check_known

Kind = Literal["pairs", "imagefolder", "aligned", "litdata"]
METADATA_FILE_NAME = "metadata.jsonl"

# what Hugging Face datasets calls them
_IMAGEFOLDER_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class SourcePair:
    """A pair of another layout.

    Attributes:
        pair: Its line; the digests are empty.
        load: Reads photo and edit.
    """

    pair: Pair
    load: Callable[[], tuple[Image.Image, Image.Image]]


def kind_of(source: Path) -> Kind:
    """Recognise a layout by its files.

    Raises:
        FileNotFoundError: It is none of them.
    """
    if (source / MANIFEST_FILE_NAME).is_file():
        return "pairs"
    if (source / INDEX_FILE_NAME).is_file():
        return "litdata"
    if _metadata_files(source):
        return "imagefolder"
    if is_aligned_folder(source):
        return "aligned"
    raise FileNotFoundError(
        f"{source} holds no pairs: none of {MANIFEST_FILE_NAME} (a pair set), {METADATA_FILE_NAME} in it or in its "
        f"folders (imagefolder), train/ (aligned) and {INDEX_FILE_NAME} (litdata); for photos/ and edits/ use "
        "`pocketgan pairs import`"
    )


def export_pairs(
    root: Path,
    out: Path,
    to: Literal["imagefolder", "aligned", "litdata"],
    concepts: list[str] | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> int:
    """Write a pair set in another layout; the folder appears whole or not at all.

    Pairs that were dropped are left out. aligned and imagefolder are split by photo as ``PairedImages`` does, and the
    latter's files are hard links where the file system allows it. A set is itself readable by Hugging Face datasets, by
    ``load_dataset("imagefolder", data_dir=ROOT, metadata_filenames=["pairs.jsonl"])``: with the dropped pairs, all in
    one split, and only while no name in it looks like a split's ("train_001"). imagefolder has none of these.

    Args:
        root: The pair set, finished.
        out: The folder to make. If it holds the same conversion already, it is left as it is.
        to: The layout.
        concepts: Those to write; all if None. aligned has a folder for each, unless there is one.
        split: Fractions of the photos for train, val and test.
        seed: Deals the split.

    Returns:
        Number of pairs.

    Raises:
        FileNotFoundError: There is no pair set, or a picture of it is missing.
        FileExistsError: ``out`` holds something else.
        ValueError: The set is unfinished or empty, a concept is unknown, a picture is not the one that was written,
            or there are too few photos for the split.
    """
    if is_unfinished(root):
        raise ValueError(
            f"the synthesis of {root} is at work or was broken off; run the same `pocketgan predict` to its end, then "
            "convert"
        )
    conversion = _conversion(root, to, concepts, split, seed)
    places = _places(conversion)
    if out.exists() and any(out.iterdir()):
        with suppress(FileNotFoundError, ValueError):
            if read_conversion(out) == conversion:
                return len(conversion.pairs)
        raise FileExistsError(f"{out} holds something else; choose a new or empty folder")
    with whole_folder(out) as folder:
        if to == "litdata":
            write_chunks(_chunk_items(root, conversion.pairs), folder)
        elif to == "aligned":
            _write_aligned(root, conversion.pairs, places, folder)
        else:
            _write_imagefolder(root, conversion.pairs, places, folder)
        write_whole(folder / CONVERSION_FILE_NAME, conversion.dumped())
    return len(conversion.pairs)


def _places(conversion: Conversion) -> list[tuple[str, str]]:
    """Each pair's photo and edit in aligned and imagefolder, relative to the folder."""
    pairs, options = conversion.pairs, conversion.options
    if conversion.to == "litdata":
        return []
    groups = [file.group for file in pair_files(pairs, Path())]
    dealt = split_of_groups(set(groups), tuple(options["split"]), options["seed"])
    several = len({pair.concept for pair in pairs}) > 1
    places = []
    for pair, group in zip(pairs, groups, strict=True):
        side = dealt[group]
        if conversion.to == "aligned":
            name = f"{pair.concept}/{side}/{pair.id}.png" if several else f"{side}/{pair.id}.png"
            places.append((name, name))
        else:
            # datasets looks for a split's name in every folder's, so that one named style_test would be taken for one
            folder = _IMAGEFOLDER_SPLITS[side]
            photo, edit = Path(pair.photo_file_name).name, Path(pair.edit_file_name).name
            places.append((f"{folder}/photos/{photo}", f"{folder}/edits/{pair.concept}.{edit}"))
    return places


def _conversion(
    root: Path, to: str, concepts: list[str] | None, split: tuple[float, float, float], seed: int
) -> Conversion:
    manifest, pairs = read_manifest(root), read_pairs(root)
    known = {pair.concept for pair in pairs}
    unknown = sorted(set(concepts or ()) - known)
    if unknown:
        raise ValueError(f"unknown concept {', '.join(unknown)}; {root} holds {', '.join(sorted(known))}")
    chosen = set(concepts or known)
    pairs = [pair for pair in pairs if pair.concept in chosen]
    if not pairs:
        dropped = len(read_pairs(root, include_dropped=True))
        raise ValueError(
            f"{root} holds no pairs that can be used ({dropped} were dropped); there is nothing to convert"
        )
    manifest["concepts"] = {name: value for name, value in manifest["concepts"].items() if name in chosen}
    options = {} if to == "litdata" else {"split": list(split), "seed": seed}
    return Conversion(to, content_hash(manifest, pairs), manifest, options, pairs)


def _checked(root: Path, pair: Pair) -> tuple[Path, Path]:
    """A pair's two files, as they were written (`checked_file`)."""
    return (
        checked_file(root / pair.photo_file_name, pair.photo_sha256),
        checked_file(root / pair.edit_file_name, pair.edit_sha256),
    )


def _chunk_items(root: Path, pairs: list[Pair]) -> Iterator[tuple[bytes, bytes, str]]:
    for pair in track(pairs, f"converting {root.name}"):
        photo, edit = _checked(root, pair)
        yield photo.read_bytes(), edit.read_bytes(), json.dumps(record_of(pair), ensure_ascii=False)


def _write_aligned(root: Path, pairs: list[Pair], places: list[tuple[str, str]], folder: Path) -> None:
    for pair, (name, _) in zip(track(pairs, f"converting {root.name}"), places, strict=True):
        photo, edit = (load_photo(file).image for file in _checked(root, pair))
        both = Image.new("RGB", (photo.width + edit.width, photo.height))
        both.paste(photo, (0, 0))
        both.paste(edit, (photo.width, 0))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        both.save(folder / name)


def _write_imagefolder(root: Path, pairs: list[Pair], places: list[tuple[str, str]], folder: Path) -> None:
    # datasets wants the same columns in every split
    records = [record_of(pair) for pair in pairs]
    shared = set.intersection(*map(set, records)) - {"scores"}
    lines: dict[str, list[str]] = {}
    for pair, record, names in zip(track(pairs, f"converting {root.name}"), records, places, strict=True):
        split = names[0].split("/")[0]
        for file, name in zip(_checked(root, pair), names, strict=True):
            _link(file, folder / name)
        row = {key: value for key, value in record.items() if key in shared}
        row["photo_file_name"], row["edit_file_name"] = (name.removeprefix(f"{split}/") for name in names)
        lines.setdefault(split, []).append(json.dumps(row, ensure_ascii=False) + "\n")
    for split, written in lines.items():
        write_whole(folder / split / METADATA_FILE_NAME, "".join(written).encode())


def _link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(file, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, target)


def import_converted(source: Path, root: Path, prompts: dict[str, str] | None = None, size: int | None = None) -> int:
    """Write what lies in another layout as a pair set; started again, it goes on.

    Of pocketgan's own conversions all that the set said of its pairs comes back, and so do its pictures' bytes where
    they were PNG; gates.json does not, nor do scores at another size. Of others' the split that the folders give is not
    kept, since a pair set is dealt anew.

    Args:
        source: aligned, imagefolder or litdata. A foreign imagefolder's rows need photo_file_name and edit_file_name;
            concept and prompt are optional, and the folder's name stands in.
        root: The pair set; made if it does not exist.
        prompts: Text of each concept; what the source says, or its name, where there is none.
        size: Side in pixels that is stored, of the largest centred square; if None that of the pictures, which must be
            squares of one size.

    Returns:
        Number of pairs in the set.

    Raises:
        FileNotFoundError: The source holds no pairs, or a picture is missing.
        ValueError: A picture cannot be read or is not of one size with its counterpart, of odd width where both stand
            side by side, or not square; two photos get one id; a prompt is of an unknown concept; the set was made of
            something else.
    """
    settings, found = _found(source, kind_of(source))
    names = settings["concepts"]
    check_known(prompts or {}, names)
    for name, prompt in (prompts or {}).items():
        names[name] = {**names[name], "prompt": prompt}
    side = size or settings["size"] or _side_of(found)
    # read from JPEG as well: a second compression would change the pixels
    with PairSetWriter(root, {**settings, "size": side, "image_format": "png"}) as writer:
        for each in track(found, f"converting {source.name}"):
            pair = each.pair
            if (pair.concept, pair.id) in writer.pairs:
                continue
            photo, edit = each.load()
            if photo.size != edit.size:
                raise ValueError(
                    f"edit {pair.concept} of {pair.id} is {edit.width}×{edit.height}, its photo "
                    f"{photo.width}×{photo.height}; both must be of one size"
                )
            if size is None and photo.size != (side, side):
                raise ValueError(
                    f"photo {pair.id} is {photo.width}×{photo.height}, another {side}×{side}; give the side of the "
                    "squares to store with --size"
                )
            small, small_edit = (
                to_tensor(image if size is None else centred_square(image, side)) for image in (photo, edit)
            )
            prompt = names[pair.concept]["prompt"]
            edited = EditedPhoto(
                pair.id,
                pair.concept,
                prompt,
                small,
                small_edit,
                pair.source,
                pair.seed,
                scores=pair.scores if size is None else None,
            )
            writer.write([edited])
    return len(writer.pairs)


def _side_of(found: list[SourcePair]) -> int:
    photo, _ = found[0].load()
    return min(photo.size)


def _found(source: Path, kind: Kind) -> tuple[dict[str, Any], list[SourcePair]]:
    """The settings of the set to write, with size 0 where it is not known, and the pairs."""
    if kind == "litdata" or (source / CONVERSION_FILE_NAME).is_file():
        conversion = read_conversion(source)
        settings = {key: value for key, value in conversion.manifest.items() if key not in {"format", "hash"}}
        return settings, _own(source, conversion)
    found = _foreign_imagefolder(source) if kind == "imagefolder" else _foreign_aligned(source)
    of_concept: dict[str, str] = {}
    for each in found:
        pair = each.pair
        if of_concept.setdefault(pair.concept, pair.prompt) != pair.prompt:
            raise ValueError(
                f"concept {pair.concept} has several prompts, such as {of_concept[pair.concept]!r} and "
                f"{pair.prompt!r}; give each a concept of its own in a column concept"
            )
    twice = [name for name, count in Counter((each.pair.concept, each.pair.id) for each in found).items() if count > 1]
    if twice:
        raise ValueError(f"two pictures would both be called {'/'.join(twice[0])}; rename one")
    listing = [(each.pair.photo_file_name, sha256_of(source / each.pair.photo_file_name)) for each in found]
    settings = {
        "teacher": {"name": kind},
        "photos": {"sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest()},
        "concepts": {name: {"prompt": prompt} for name, prompt in of_concept.items()},
        "size": 0,
        "seed": 0,
        "versions": {},
    }
    return settings, found


def _own(source: Path, conversion: Conversion) -> list[SourcePair]:
    pairs = conversion.pairs
    if conversion.to == "litdata":
        chunks = PairChunks(str(source), source / ".cache")
        return [SourcePair(pair, partial(_from_chunks, chunks, place)) for place, pair in enumerate(pairs)]
    load = _from_one_file if conversion.to == "aligned" else _from_two_files
    places = _places(conversion)
    return [
        SourcePair(pair, partial(load, source / photo, source / edit))
        for pair, (photo, edit) in zip(pairs, places, strict=True)
    ]


def _from_one_file(file: Path, _: Path) -> tuple[Image.Image, Image.Image]:
    return side_by_side(file)


def _from_two_files(photo: Path, edit: Path) -> tuple[Image.Image, Image.Image]:
    return load_photo(photo).image, load_photo(edit).image


def _from_chunks(chunks: PairChunks, place: int) -> tuple[Image.Image, Image.Image]:
    photo, edit = (Image.open(io.BytesIO(content)).convert("RGB") for content in chunks.read(place))
    return photo, edit


def _foreign_aligned(source: Path) -> list[SourcePair]:
    files = pairs_of_aligned_folder(source)
    names = [file.photo.relative_to(source).as_posix() for file in files]
    return [
        SourcePair(
            # train/1.png and test/1.png are two photos
            _line_of(as_name(file.group.removesuffix(file.photo.suffix)), file.concept, file.prompt, name, name),
            partial(_from_one_file, file.photo, file.edit),
        )
        for file, name in zip(files, names, strict=True)
    ]


def _foreign_imagefolder(source: Path) -> list[SourcePair]:
    found = []
    for metadata in _metadata_files(source):
        below = metadata.parent.relative_to(source)
        for number, line in enumerate(metadata.read_text().splitlines(), start=1):
            try:
                row = json.loads(line)
                photo, edit = ((below / row[f"{side}_file_name"]).as_posix() for side in ("photo", "edit"))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{metadata}, line {number} names no pair ({error!r}); each line must be JSON with photo_file_name "
                    f"and edit_file_name, and can have concept and prompt"
                ) from error
            concept = as_name(row.get("concept") or source.name)
            pair = _line_of(
                as_name(str(Path(photo).with_suffix(""))), concept, row.get("prompt") or concept, photo, edit
            )
            found.append(SourcePair(pair, partial(_from_two_files, source / photo, source / edit)))
    return found


def _line_of(name: str, concept: str, prompt: str, photo: str, edit: str) -> Pair:
    return Pair(name, concept, prompt, photo, edit, photo_sha256="", edit_sha256="")


def _metadata_files(source: Path) -> list[Path]:
    return sorted([*source.glob(METADATA_FILE_NAME), *source.glob(f"*/{METADATA_FILE_NAME}")])
