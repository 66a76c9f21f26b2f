"""Pair sets on disk: photos, their edits, and the lines that say which belongs to which.

ROOT/manifest.json             every setting that changes a pixel; its hash
ROOT/photos/<id>.png           each photo once
ROOT/edits/<concept>/<id>.png  its edits
ROOT/pairs.jsonl               one line per pair, sorted by concept and id
ROOT/gates.json                where gates judged the pairs: which, with what limits
ROOT/journal-<rank>.jsonl      only during a synthesis, or after one was killed: lines not yet in pairs.jsonl
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketgan.files import exclusive, write_changed
from pocketgan.gates.gate import Gate
from pocketgan.gates.judgement import GATES_FILE_NAME, gates_document, outdated_scores, read_gates, without_scores

FORMAT = "pocketgan pair set 1"
MANIFEST_FILE_NAME = "manifest.json"
PAIRS_FILE_NAME = "pairs.jsonl"
# there from the opening of a writer to its closing in good order
UNFINISHED_FILE_NAME = ".unfinished"
LOCK_FILE_NAME = ".writer.lock"


@dataclass(frozen=True)
class Pair:
    """One line of pairs.jsonl.

    Attributes:
        id: The photo's name within the set, shared by all its edits.
        concept: The edit's name.
        prompt: What the teacher was asked for.
        photo_file_name: Relative to the set's root, with forward slashes.
        edit_file_name: Likewise.
        photo_sha256: Of the file.
        edit_sha256: Of the file.
        source: The photo that this one is a crop of; equal for all crops of one photo, so that they are never
            split between training and test.
        seed: The teacher's seed for this pair.
        scores: Quality measures by name.
        dropped: Why the pair is not to be used.
    """

    id: str
    concept: str
    prompt: str
    photo_file_name: str
    edit_file_name: str
    photo_sha256: str
    edit_sha256: str
    source: str | None = None
    seed: int | None = None
    scores: dict[str, float] | None = None
    dropped: str | None = None

    def has_files(self, root: Path) -> bool:
        """Whether both pictures are there."""
        return all((root / name).is_file() for name in (self.photo_file_name, self.edit_file_name))


def read_manifest(root: Path) -> dict[str, Any]:
    """Read a pair set's manifest.

    Raises:
        FileNotFoundError: If `root` is not a pair set.
        ValueError: If the manifest is broken or of another format.
    """
    path = root / MANIFEST_FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{root} is not a pair set: it has no {MANIFEST_FILE_NAME}; make one with "
            f"`pocketgan predict -c configs/synthesize/style_transfer.yaml` and give the root that it prints"
        )
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it or make the set anew") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT!r}")
    return manifest


def read_pairs(root: Path, include_dropped: bool = False) -> list[Pair]:
    """Read a pair set's lines, those of a killed or running synthesis among them.

    Args:
        root: The pair set.
        include_dropped: Also return pairs that are marked as not to be used.

    Returns:
        Pairs sorted by concept and id. That their files are there is for the caller to check.

    Raises:
        FileNotFoundError: If `root` is not a pair set.
        ValueError: If a line is broken; the message names the file and the line.
    """
    read_manifest(root)
    pairs: dict[tuple[str, str], Pair] = {}
    # Journals are read last: a line in one is newer than the line for the same pair in pairs.jsonl.
    for path in [root / PAIRS_FILE_NAME, *_journals(root)]:
        pairs.update(((pair.concept, pair.id), pair) for pair in _read_lines(path))
    return [pair for _, pair in sorted(pairs.items()) if include_dropped or pair.dropped is None]


def complete_pairs(root: Path) -> dict[tuple[str, str], Pair]:
    """Return the pairs whose files are there, by (concept, id), the dropped among them; none if there is no set."""
    if not (root / MANIFEST_FILE_NAME).exists():
        return {}
    return {(pair.concept, pair.id): pair for pair in read_pairs(root, include_dropped=True) if pair.has_files(root)}


def concepts_by_id(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Turn (concept, id) into the concepts that each photo has: id to names."""
    done: dict[str, set[str]] = {}
    for concept, photo_id in pairs:
        done.setdefault(photo_id, set()).add(concept)
    return done


def set_hash(root: Path) -> str:
    """Return a name for the set's exact content: SHA-256 over its manifest and its sorted pairs.

    Raises:
        FileNotFoundError: If `root` is not a pair set.
        ValueError: If it is broken.
    """
    return content_hash(read_manifest(root), read_pairs(root, include_dropped=True))


def content_hash(manifest: Mapping[str, Any], pairs: Iterable[Pair]) -> str:
    """Return SHA-256 over a manifest and pairs sorted by concept and id, in hexadecimal.

    Model and licence are left out: what they are called, or whether that could be looked up, changes no pixel.
    """
    content = {key: value for key, value in manifest.items() if key != "origin"}
    return hashlib.sha256(canonical(content) + b"".join(map(line_of, pairs))).hexdigest()


def set_gates(root: Path) -> dict[str, Gate]:
    """The gates that judged a set by their names; none if no gate did.

    Raises:
        ValueError: They cannot be built any more.
    """
    file = root / GATES_FILE_NAME
    return read_gates(file) if file.is_file() else {}


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other writers out of a pair set.

    Raises:
        RuntimeError: Another process is writing it.
        OSError: It cannot be written.
    """
    lock_path = root / LOCK_FILE_NAME
    busy = RuntimeError(
        f"pair set {root} is being written by another process, which holds {lock_path}; "
        f"wait until it ends, or choose another root"
    )
    with exclusive(lock_path, busy):
        yield


def replace_pairs(root: Path, pairs: Sequence[Pair]) -> None:
    """Write a set's lines anew, with what its journals hold; for the holder of its lock.

    Args:
        root: The pair set.
        pairs: All its pairs, sorted by concept and id.
    """
    write_changed(root / PAIRS_FILE_NAME, b"".join(map(line_of, pairs)))
    for journal in _journals(root):
        journal.unlink()


def replace_gates(root: Path, pairs: Sequence[Pair], gates: Mapping[str, Gate]) -> None:
    """Write a set's gates; for the holder of its lock.

    Scores that the gates of before measured otherwise, by another model for example, are forgotten first.

    Args:
        root: The pair set.
        pairs: All its pairs, sorted by concept and id.
        gates: By name.
    """
    outdated = outdated_scores(gates, set_gates(root))
    if outdated:
        replace_pairs(root, [without_scores(pair, outdated) for pair in pairs])
    write_changed(root / GATES_FILE_NAME, gates_document(gates))


def is_unfinished(root: Path) -> bool:
    """Whether a synthesis is at work on the set or was broken off."""
    return (root / UNFINISHED_FILE_NAME).is_file() or bool(_journals(root))


def _journals(root: Path) -> list[Path]:
    return sorted(root.glob("journal-*.jsonl"))


def _read_lines(path: Path) -> list[Pair]:
    if not path.exists():
        return []
    pairs = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            pairs.append(Pair(**json.loads(line)))
        except (ValueError, TypeError) as error:
            torn = number == len(lines) and not line.endswith(b"\n") and path.name != PAIRS_FILE_NAME
            if torn:
                break
            raise ValueError(
                f"{path}, line {number} is not a pair ({error}); "
                f"remove the line and run the synthesis again to redo that pair"
            ) from error
    return pairs


def record_of(pair: Pair) -> dict[str, Any]:
    """A pair as its line has it: what is not known is left out."""
    return {key: value for key, value in asdict(pair).items() if value is not None}


def line_of(pair: Pair) -> bytes:
    """A pair as a line of pairs.jsonl."""
    return json.dumps(record_of(pair), ensure_ascii=False).encode() + b"\n"


def canonical(value: Any) -> bytes:
    """JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def as_name(text: str) -> str:
    """Make a text fit to name a concept or a photo of a set: what cannot be part of a file's name becomes _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)
