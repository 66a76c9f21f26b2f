"""Writing a pair set: whole files, a journal for each process, one manifest that must stay the same."""

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, Self

from PIL import Image
from torch import Tensor

from pocketgan.files import explained_write_error, remove_temporaries, write_changed, write_whole
from pocketgan.gates.gate import Gate
from pocketgan.gates.judgement import gates_document, judged, measured, pair_gates, refusal
from pocketgan.images import to_image, to_tensor
from pocketgan.pair_set import (
    FORMAT,
    MANIFEST_FILE_NAME,
    PAIRS_FILE_NAME,
    UNFINISHED_FILE_NAME,
    Pair,
    canonical,
    complete_pairs,
    concepts_by_id,
    content_hash,
    is_unfinished,
    line_of,
    locked,
    read_manifest,
    read_pairs,
    replace_gates,
    replace_pairs,
    set_gates,
)

_SETTINGS = ("concepts", "image_format", "photos", "seed", "size", "teacher", "versions")
_SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
_DIFFERENCES_IN_MESSAGE = 12
_VALUE_LENGTH = 80


class EditedPhoto(NamedTuple):
    """A pair that is not yet on disk.

    Attributes:
        id: The photo's name within the set.
        concept: The edit's name.
        prompt: What the teacher was asked for.
        photo: (3, H, W) in [-1, 1].
        edit: (3, H, W) in [-1, 1].
        source: The photo that this one is a crop of.
        seed: The teacher's seed.
        scores: Measures that cannot be taken from the stored pictures.
        dropped: Why the pair is not to be used, whatever gates say; begins with who says so and a colon.
    """

    id: str
    concept: str
    prompt: str
    photo: Tensor
    edit: Tensor
    source: str | None = None
    seed: int | None = None
    scores: Mapping[str, float] | None = None
    dropped: str | None = None


class PreparedPair(NamedTuple):
    """What is to be written of a pair.

    Attributes:
        photo: Content of its file.
        edit: Content of its file.
        scores: Of the gates.
    """

    photo: bytes
    edit: bytes
    scores: dict[str, float]


class PairSetWriter:
    """Writes a pair set, alone or as one of several processes.

    A pair's line is written after its files are whole, into the process's own journal, so a process can be
    killed at any moment: what has a line is complete, and what has none is made again. Rank 0 merges the
    journals into pairs.jsonl when the set is opened and closed. The files do not depend on how often the work
    was interrupted, nor on the number of processes. `write` can be called from several threads.

    With several processes, rank 0 must be open before the others open, and the others closed before rank 0
    closes. As a context manager it closes itself. On several machines all must see one file system. Each process
    appends to a journal of its own, named by its rank over all machines, and syncs every line; file names are taken
    by renaming, which is one step on NFS, Lustre and the like too. Rank 0's lock is an flock: it keeps out a second
    run on any machine if the file system passes locks on (NFS does unless mounted with nolock, Lustre if mounted with
    flock), on its own machine only if not. A file that another machine made a moment ago may not be listed yet: a
    journal that rank 0 misses when it closes is read by all readers, and merged when the set is opened next.

    Attributes:
        pairs: What is complete, by (concept, id).
        had_other_gates: Whether the set was judged by other gates or limits than these before.

    Args:
        root: The pair set; made if it does not exist.
        settings: The manifest's content: teacher, photos, size (pixels), image_format ("png" or "jpeg"),
            seed, versions, origin (model and licence, optional), and concepts, a mapping of name to {"prompt": …}.
            Plain JSON values.
        rank: This process's number; 0 holds the lock and writes all that is shared.
        gates: Measure and judge the pairs, by name; their thresholds may be others than before. Without any, new pairs
            are not judged and old marks stay.

    Raises:
        ValueError: If settings are missing or bad, or the set was made with others. Concepts may be added to
            a set.
        RuntimeError: If another process is writing the set.
    """

    def __init__(
        self, root: Path, settings: Mapping[str, Any], rank: int = 0, gates: Mapping[str, Gate] | None = None
    ) -> None:
        missing = sorted(set(_SETTINGS) - set(settings))
        if missing:
            raise ValueError(f"the settings lack {', '.join(missing)}; needed are {', '.join(_SETTINGS)}")
        if settings["image_format"] not in _SUFFIXES:
            raise ValueError(f"image_format {settings['image_format']!r} is not one of {', '.join(_SUFFIXES)}")
        for name in settings["concepts"]:
            _check_name(name, "concept")
        self.root = root
        self.pairs: dict[tuple[str, str], Pair] = {}
        self._image_format: str = settings["image_format"]
        self._rank = rank
        self._gates = dict(gates or {})
        self._earlier_gates: set[str] = set()
        self.had_other_gates = False
        self._journal: BinaryIO | None = None
        self._lock = ExitStack()
        self._of_one_thread = Lock()
        self._is_open = True
        if rank == 0:
            self._open_shared(settings)
        self._read_complete()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; after an error the next opening merges."""
        self.close(merge=kind is None)

    def _open_shared(self, settings: Mapping[str, Any]) -> None:
        with explained_write_error(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        self._lock.enter_context(locked(self.root))
        try:
            self._write_manifest(settings)
            remove_temporaries(self.root)
            was_unfinished = is_unfinished(self.root)
            write_changed(self.root / UNFINISHED_FILE_NAME, b"")
            self._merge_journals()
            if self._gates:
                earlier = set_gates(self.root)
                self._earlier_gates = set(earlier)
                self.had_other_gates = bool(earlier) and gates_document(earlier) != gates_document(self._gates)
                replace_gates(self.root, read_pairs(self.root, include_dropped=True), self._gates)
                if was_unfinished:
                    # should this run end before it closes the set, nothing would tell that its pairs are not judged
                    self._judge()
        except BaseException:
            self._lock.close()
            raise

    def _write_manifest(self, settings: Mapping[str, Any]) -> None:
        # Through JSON and back, so that a tuple given equals the list read.
        wanted: dict[str, Any] = json.loads(canonical({**settings, "format": FORMAT}))
        path = self.root / MANIFEST_FILE_NAME
        # a run that was refused leaves a set without pairs, which is no other set
        if path.exists() and read_pairs(self.root, include_dropped=True):
            found = read_manifest(self.root)
            _check_same_settings(self.root, found, wanted)
            wanted["concepts"] = found["concepts"] | wanted["concepts"]
            # The set keeps the versions that it began with, or its name would change at every upgrade, and a licence
            # that it knows and that may not be looked up any more.
            wanted |= {key: found[key] for key in ("versions", "origin") if key in found}
            if found.get("origin", {}).get("licence") == "unknown" and "origin" in settings:
                wanted["origin"] = dict(settings["origin"])
        _check_no_other_files(self.root)
        wanted["hash"] = content_hash(wanted, [])
        write_changed(path, json.dumps(wanted, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")

    def _read_complete(self) -> None:
        self.pairs = complete_pairs(self.root)
        self._photo_sha256 = {pair.id: pair.photo_sha256 for pair in self.pairs.values()}

    def concepts_by_id(self) -> dict[str, set[str]]:
        """Return the concepts that each photo already has: id to names."""
        return concepts_by_id(self.pairs)

    def write(self, edited_photos: Iterable[EditedPhoto]) -> None:
        """Write pairs; each is safe on disk before the next begins.

        Args:
            edited_photos: Pairs; one that is already complete is passed over.

        Raises:
            ValueError: If a name is not fit for a file, photo and edit differ in size, or the set holds
                another photo of the same id.
            OSError: If the disk is full or read-only.
        """
        for edited in edited_photos:
            if (edited.concept, edited.id) not in self.pairs:
                self._write_one(edited)

    def _write_one(self, edited: EditedPhoto) -> None:
        _check_name(edited.id, "id")
        _check_name(edited.concept, "concept")
        if edited.photo.shape != edited.edit.shape:
            sizes = f"{tuple(edited.photo.shape)} and {tuple(edited.edit.shape)}"
            raise ValueError(f"photo {edited.id} and its edit {edited.concept} differ in shape: {sizes}")
        ready = prepared(edited, self._image_format, self._gates)
        with self._of_one_thread:
            self._store(edited, ready)

    def _store(self, edited: EditedPhoto, ready: PreparedPair) -> None:
        suffix = _SUFFIXES[self._image_format]
        photo_file_name = f"photos/{edited.id}{suffix}"
        edit_file_name = f"edits/{edited.concept}/{edited.id}{suffix}"
        photo_sha256 = hashlib.sha256(ready.photo).hexdigest()
        known = self._photo_sha256.get(edited.id)
        if known is None:
            self._write_file(photo_file_name, ready.photo)
            self._photo_sha256[edited.id] = photo_sha256
        elif known != photo_sha256:
            raise ValueError(
                f"pair set {self.root} holds another photo under the id {edited.id}: the photo has changed, "
                f"or the libraries that scale it have; write to another root"
            )
        self._write_file(edit_file_name, ready.edit)
        pair = Pair(
            id=edited.id,
            concept=edited.concept,
            prompt=edited.prompt,
            photo_file_name=photo_file_name,
            edit_file_name=edit_file_name,
            photo_sha256=photo_sha256,
            edit_sha256=hashlib.sha256(ready.edit).hexdigest(),
            source=edited.source,
            seed=edited.seed,
            scores=ready.scores or None,
            dropped=edited.dropped or refusal(pair_gates(self._gates), ready.scores),
        )
        self._append(pair)
        self.pairs[pair.concept, pair.id] = pair

    def _write_file(self, name: str, data: bytes) -> None:
        path = self.root / name
        with explained_write_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    def _append(self, pair: Pair) -> None:
        path = self.root / f"journal-{self._rank}.jsonl"
        with explained_write_error(path):
            if self._journal is None:
                self._journal = path.open("ab")
            self._journal.write(line_of(pair))
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def _merge_journals(self) -> None:
        if is_unfinished(self.root) or not (self.root / PAIRS_FILE_NAME).exists():
            replace_pairs(self.root, read_pairs(self.root, include_dropped=True))

    def _judge(self) -> None:
        pairs = read_pairs(self.root, include_dropped=True)
        replace_pairs(self.root, judged(self.root, pairs, self._gates, self._earlier_gates))

    def close(self, merge: bool = True) -> None:
        """Close the journal; on rank 0, merge all journals, judge the pairs by the gates, and release the lock.

        Closing twice does no harm.

        Args:
            merge: False after an error, when other processes may still be writing: the next opening merges.
        """
        was_open, self._is_open = self._is_open, False
        journal, self._journal = self._journal, None
        with self._lock:
            if journal is not None:
                with explained_write_error(self.root / journal.name), nullcontext() if merge else suppress(OSError):
                    journal.close()
            if merge and was_open and self._rank == 0:
                self._merge_journals()
                if self._gates:
                    self._judge()
                self._read_complete()
                (self.root / UNFINISHED_FILE_NAME).unlink(missing_ok=True)


def prepared(edited: EditedPhoto, image_format: str, gates: Mapping[str, Gate]) -> PreparedPair:
    """Do all that takes time and touches nothing: encode a pair and measure it as it will be read.

    Args:
        edited: The pair.
        image_format: See `encoded`.
        gates: By name.
    """
    photo, edit = encoded(edited.photo, image_format), encoded(edited.edit, image_format)
    scores = dict(edited.scores or {})
    if gates:
        stored_photo, stored_edit = (to_tensor(Image.open(io.BytesIO(data))) for data in (photo, edit))
        scores = measured(gates, stored_photo, stored_edit, edited.concept, edited.prompt, scores)
    return PreparedPair(photo, edit, scores)


def encoded(picture: Tensor, image_format: str) -> bytes:
    """The content of a stored file.

    Args:
        picture: (3, H, W) in [-1, 1].
        image_format: "png", or "jpeg" at quality 95 without chroma subsampling.
    """
    buffer = io.BytesIO()
    if image_format == "png":
        to_image(picture).save(buffer, "PNG")
    else:
        to_image(picture).save(buffer, "JPEG", quality=95, subsampling="4:4:4")
    return buffer.getvalue()


def _check_name(name: str, kind: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"{kind} {name!r} cannot name a file; use letters A-Z, digits, _ and - only")


def check_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Refuse what `PairSetWriter` refuses of a root, without writing.

    Args:
        root: The pair set, or a folder to become one.
        settings: See `PairSetWriter`.

    Raises:
        ValueError: The set was made with other settings, each of which is listed, or the folder holds other files.
    """
    _check_no_other_files(root)
    if (root / MANIFEST_FILE_NAME).exists() and read_pairs(root, include_dropped=True):
        _check_same_settings(root, read_manifest(root), json.loads(canonical({**settings, "format": FORMAT})))


def _check_no_other_files(root: Path) -> None:
    if not (root / MANIFEST_FILE_NAME).exists() and any(root.glob("[!.]*")):
        raise ValueError(f"{root} holds other files and no {MANIFEST_FILE_NAME}; choose a new or empty folder")


def _check_same_settings(root: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    both = set(found["concepts"]) & set(wanted["concepts"])
    differences = _differences(_compared(found, both), _compared(wanted, both))
    if differences:
        listed = "\n  ".join(differences[:_DIFFERENCES_IN_MESSAGE])
        rest = len(differences) - _DIFFERENCES_IN_MESSAGE
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise ValueError(
            f"pair set {root} was made with other settings:\n  {listed}{more}\nuse its settings, or choose another root"
        )
    if found["versions"] != wanted["versions"]:
        changed = ", ".join(_differences(found["versions"], wanted["versions"]))
        warnings.warn(
            f"pair set {root} was begun with other versions and goes on ({changed}); "
            f"pixels may differ slightly between its old and new pairs",
            stacklevel=2,
        )


def _compared(settings: Mapping[str, Any], concepts: set[str]) -> dict[str, Any]:
    apart = {"concepts", "versions", "origin", "hash"}
    compared = {key: value for key, value in settings.items() if key not in apart}
    return compared | {f"concepts.{name}": settings["concepts"][name] for name in concepts}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    """One line for each value that differs, such as "teacher.strength: the set has 0.6, this run 0.7"."""
    lines = []
    for key in sorted({*found, *wanted}):
        ours, theirs = (_shown(mapping[key]) if key in mapping else "none" for mapping in (found, wanted))
        if isinstance(found.get(key), dict) and isinstance(wanted.get(key), dict):
            lines += _differences(found[key], wanted[key], f"{path}{key}.")
        elif found.get(key) != wanted.get(key) or (key in found) != (key in wanted):
            lines.append(f"{path}{key}: the set has {ours}, this run {theirs}")
    return lines


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_LENGTH else f"{text[:_VALUE_LENGTH]}…"
