"""Pairs in litdata chunks, in a folder or in object storage."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from pocketgan.files import explained_write_error, write_whole
from pocketgan.pair_set import Pair, record_of

FORMAT = "pocketgan converted pairs 1"
CONVERSION_FILE_NAME = "conversion.json"
INDEX_FILE_NAME = "index.json"
CHUNK_BYTES = 64 * 1024**2


@dataclass(frozen=True)
class Conversion:
    """What a converted pair set says of itself.

    Attributes:
        to: "imagefolder", "aligned" or "litdata".
        hash: Of the manifest and the pairs, as ``pocketgan.pair_set.content_hash`` gives it.
        manifest: The pair set's.
        options: What else the files depend on.
        pairs: In the set's order. Their file names are those of the pair set.
    """

    to: str
    hash: str
    manifest: dict[str, Any]
    options: dict[str, Any]
    pairs: list[Pair]

    def dumped(self) -> bytes:
        """As the file holds it."""
        pairs = [record_of(pair) for pair in self.pairs]
        content = {"format": FORMAT, "to": self.to, "hash": self.hash, "options": self.options}
        return json.dumps(content | {"manifest": self.manifest, "pairs": pairs}, ensure_ascii=False).encode()


def read_conversion(folder: Path) -> Conversion:
    """Read what a converted pair set says of itself.

    Raises:
        FileNotFoundError: It says nothing: it was not converted by pocketgan.
        ValueError: The file is broken or of another format.
    """
    path = folder / CONVERSION_FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONVERSION_FILE_NAME}, so pocketgan did not write it; make one from a pair set with "
            "`pocketgan pairs convert ROOT --to litdata --out DIR`"
        )
    try:
        content = json.loads(path.read_bytes())
        found = content.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"its format is {found!r}, this version reads {FORMAT!r}")
        return Conversion(**content | {"pairs": [Pair(**record) for record in content["pairs"]]})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); convert the pair set anew") from error


def _litdata() -> Any:
    # litdata asks PyPI for a newer version of itself, for up to 30 seconds where there is no network
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")
    try:
        import litdata
    except ImportError as error:
        raise ModuleNotFoundError(
            "pairs in chunks need litdata, which is not installed; run: pip install 'pocketgan[stream]'"
        ) from error
    return litdata


def write_chunks(items: Iterable[tuple[bytes, bytes, str]], folder: Path, chunk_bytes: int = CHUNK_BYTES) -> None:
    """Write litdata chunks.

    Args:
        items: Photo and edit as the files' bytes, and the pair's record as JSON. litdata gives tuples back as they
            are; a dict's items it stores in a way that its reading of single items does not find (0.2.76).
        folder: An empty folder.
        chunk_bytes: Of a chunk file, at most, where one pair is smaller.
    """
    _litdata()
    from litdata.streaming import Cache

    writer = Cache(str(folder), chunk_bytes=chunk_bytes)
    with explained_write_error(folder):
        for number, item in enumerate(items):
            writer[number] = item
        writer.done()
        writer.merge()


class PairChunks:
    """A pair set in litdata chunks, read one pair at a time in any order.

    A local folder's chunks are mapped into memory where they are. Of object storage a chunk is fetched whole into the
    cache when the first pair of it is wanted, and stays there: processes of one machine share it, and it must have
    room for all the chunks. litdata's own reading of single pairs from object storage fetches each anew.

    Attributes:
        conversion: Its pairs, in the order of their places.

    Args:
        root: A folder that ``pocketgan pairs convert --to litdata`` wrote, or an address that litdata knows (s3://,
            gs://, azure://, r2://) of one that was copied there. Credentials come from the environment.
        cache: Local folder for what is fetched.

    Raises:
        ModuleNotFoundError: litdata is not installed.
        FileNotFoundError: There is no converted pair set.
        ValueError: It is of another format.
    """

    def __init__(self, root: str, cache: Path) -> None:
        _litdata()
        self._remote = root if is_address(root) else None
        self._folder = Path(root) if self._remote is None else self._fetch_listing(root, cache)
        self.conversion = read_conversion(self._folder)
        index = self._folder / INDEX_FILE_NAME
        if self.conversion.to != "litdata" or not index.is_file():
            raise FileNotFoundError(
                f"{root} holds no litdata chunks; make them with `pocketgan pairs convert ROOT --to litdata --out DIR`"
            )
        self._chunks: list[dict[str, Any]] = json.loads(index.read_bytes())["chunks"]
        self._chunk_of = [number for number, chunk in enumerate(self._chunks) for _ in range(chunk["chunk_size"])]
        if len(self._chunk_of) != len(self.conversion.pairs):
            raise ValueError(
                f"{root} has {len(self._chunk_of)} pairs in its chunks and {len(self.conversion.pairs)} in "
                f"{CONVERSION_FILE_NAME}; convert the pair set anew"
            )
        self._dataset: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what is mapped into memory, which a loader process that is not forked maps anew."""
        return self.__dict__ | {"_dataset": None}

    def read(self, place: int) -> tuple[bytes, bytes]:
        """Photo and edit of the pair at a place, as PNG or JPEG.

        Raises:
            FileNotFoundError: Its chunk is missing.
        """
        self._fetch(self._chunks[self._chunk_of[place]]["filename"])
        if self._dataset is None:
            # one pair at a time: by default litdata reads all that follow it in the chunk, up to 16 MB
            self._dataset = _litdata().StreamingDataset(str(self._folder), batch_decode=1)
        photo, edit, _ = self._dataset[place]
        return photo, edit

    def _fetch(self, name: str) -> None:
        file = self._folder / name
        if file.is_file():
            return
        if self._remote is None:
            raise FileNotFoundError(f"{file} is missing, {INDEX_FILE_NAME} names it; convert the pair set anew")
        with explained_write_error(file), FileLock(file.with_name(f"{name}.fetching")):
            if not file.is_file():
                _download(self._remote, name, file)

    @staticmethod
    def _fetch_listing(root: str, cache: Path) -> Path:
        """Fetch the small files, and return the folder for the chunks of exactly this conversion."""
        with explained_write_error(cache):
            cache.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=cache) as temporary:
                contents = {}
                for name in (CONVERSION_FILE_NAME, INDEX_FILE_NAME):
                    _download(root, name, Path(temporary) / name)
                    contents[name] = (Path(temporary) / name).read_bytes()
        digest = hashlib.sha256(b"".join(contents.values())).hexdigest()
        folder = cache / f"chunks-{digest[:16]}"
        with explained_write_error(folder):
            folder.mkdir(exist_ok=True)
        for name, content in contents.items():
            write_whole(folder / name, content)
        return folder


def is_address(root: str) -> bool:
    """Whether a root is in object storage; litdata's ``local:`` before a path stands in for it."""
    return "://" in root or root.startswith("local:")


def _download(root: str, name: str, file: Path) -> None:
    from litdata.streaming.downloader import get_downloader

    address = f"{root.rstrip('/')}/{name}"
    reason = "nothing came"
    try:
        get_downloader(root, str(file.parent), []).download_file(address, str(file))
    except Exception as error:  # each storage has its own
        if isinstance(error, OSError) and error.errno:
            raise
        reason = str(error)
    if not file.is_file():
        raise FileNotFoundError(f"{address} cannot be fetched ({reason}); check the address and the credentials")
