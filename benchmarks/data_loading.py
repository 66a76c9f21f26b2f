"""How many pairs does a CPU second load: PairedImages, StreamedPairs, ImageFolder, litdata, webdataset?

pip install -c constraints.txt -e '.[benchmark]'
python -m benchmarks.data_loading --pairs PAIR_SET > benchmarks/data_loading.md
"""

import argparse
import contextlib
import hashlib
import io
import os
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litdata
import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from benchmarks.runs import commit
from datamodules import PairedImages, StreamedPairs
from pocketgan.pair_convert import export_pairs
from pocketgan.pair_set import Pair, read_pairs

# gives batches of photos and edits, (B, H, W, 3) bytes, as often as it is iterated over
Loader = Iterable[dict[str, Any]]
OURS = "PairedImages"


def in_training(data: PairedImages) -> SimpleNamespace:
    """Give the datamodule all that it asks of a trainer; the module that is trained is returned."""
    module = SimpleNamespace(images_seen=0)
    trainer: Any = SimpleNamespace(training=True, global_rank=0, world_size=1, lightning_module=module)
    data.trainer = trainer
    return module


def floats_of(loader: Loader, data: PairedImages, module: SimpleNamespace) -> Iterator[tuple[Tensor, Tensor]]:
    """A pass of photos and edits, (B, 3, H, W) in [-1, 1], mirrored at random; the same code for every loader."""
    for batch in loader:
        floats = data.on_after_batch_transfer(batch, 0)
        yield floats["photo"], floats["edit"]
        module.images_seen += data.batch_size


def paired_images(data: PairedImages, folder: Path) -> Loader:  # noqa: ARG001
    data.setup("fit")
    return data.train_dataloader()


def streamed_pairs(data: PairedImages, folder: Path) -> Loader:
    export_pairs(data.root, folder / "chunks", "litdata")
    streamed = StreamedPairs(
        str(folder / "chunks"), size=data.size, batch_size=data.batch_size, split=(1.0, 0.0, 0.0), seed=data.seed
    )
    streamed.trainer = data.trainer
    streamed.setup("fit")
    return streamed.train_dataloader()


class ImageFolderPairs(Dataset[dict[str, Tensor]]):
    """Two ImageFolders side by side, the concepts being the classes; the photos are links, one for each edit."""

    def __init__(self, root: Path, folder: Path) -> None:
        for pair in read_pairs(root):
            for side, file_name in (("photo", pair.photo_file_name), ("edit", pair.edit_file_name)):
                link = folder / side / pair.concept / Path(pair.edit_file_name).name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((root / file_name).resolve())
        self.sides = {side: ImageFolder(str(folder / side), transform=np.array) for side in ("photo", "edit")}

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.sides["edit"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Photo and edit, (H, W, 3) bytes."""
        return {side: torch.from_numpy(pictures[index][0]) for side, pictures in self.sides.items()}


def image_folder(data: PairedImages, folder: Path) -> Loader:
    return DataLoader(ImageFolderPairs(data.root, folder), data.batch_size, shuffle=True, drop_last=True)


def decoded(file: Any) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB")))


def file_contents(root: Path, pair: Pair) -> dict[str, bytes]:
    return {
        "photo": (root / pair.photo_file_name).read_bytes(),
        "edit": (root / pair.edit_file_name).read_bytes(),
    }


def decoded_pair(root: Path, pair: Pair) -> dict[str, Tensor]:
    return {side: decoded(io.BytesIO(content)) for side, content in file_contents(root, pair).items()}


class LitdataFiles(litdata.StreamingDataset):
    """Decodes the files that the chunks hold."""

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """Photo and edit, (H, W, 3) bytes."""
        return {side: decoded(io.BytesIO(content)) for side, content in super().__getitem__(index).items()}


def litdata_chunks(data: PairedImages, folder: Path, decode_once: bool) -> Loader:
    # litdata starts a process of its own for this, to which a lambda cannot be sent
    function = partial(decoded_pair if decode_once else file_contents, data.root)
    chunks = str(folder / "chunks")
    litdata.optimize(function, read_pairs(data.root), chunks, chunk_bytes="64MB", num_workers=1, verbose=False)
    dataset = (litdata.StreamingDataset if decode_once else LitdataFiles)(chunks, shuffle=True)
    return litdata.StreamingDataLoader(dataset, batch_size=data.batch_size, drop_last=True)


def webdataset_shards(data: PairedImages, folder: Path, decode_once: bool) -> Loader:
    suffix = "npy" if decode_once else "png"
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for number, pair in enumerate(read_pairs(data.root)):
            sides: dict[str, Any] = (
                {side: pixels.numpy() for side, pixels in decoded_pair(data.root, pair).items()}
                if decode_once
                else dict(file_contents(data.root, pair))
            )
            writer.write({"__key__": f"{number:06d}", **{f"{side}.{suffix}": sides[side] for side in sides}})
    shards = sorted(str(file) for file in folder.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(1000)
        .decode("rgb8")
        .rename(photo=f"photo.{suffix}", edit=f"edit.{suffix}")
    )
    return DataLoader(dataset, data.batch_size, drop_last=True)


LOADERS: dict[str, Callable[[PairedImages, Path], Loader]] = {
    OURS: paired_images,
    "StreamedPairs": streamed_pairs,
    "ImageFolder": image_folder,
    "litdata": partial(litdata_chunks, decode_once=False),
    "webdataset": partial(webdataset_shards, decode_once=False),
    "litdata (decoded)": partial(litdata_chunks, decode_once=True),
    "webdataset (decoded)": partial(webdataset_shards, decode_once=True),
}


def digest(photo: Tensor, edit: Tensor) -> bytes:
    floats = torch.stack((photo, edit)).contiguous().numpy()
    return hashlib.blake2b(floats.tobytes(), digest_size=16).digest()


def expected_digests(root: Path, size: int) -> dict[bytes, tuple[str, bool]]:
    """Every pair's floats, as they are and mirrored, read plainly from the files."""
    expected = {}
    for pair in read_pairs(root):
        pictures = decoded_pair(root, pair)
        for side, bytes_ in pictures.items():
            if bytes_.shape != (size, size, 3):
                raise ValueError(
                    f"the {side} of pair {pair.concept}/{pair.id} is {bytes_.shape[1]}x{bytes_.shape[0]}, --size is "
                    f"{size}; give a pair set of {size} px, or the set's own --size"
                )
        photo, edit = (bytes_.permute(2, 0, 1).float() / 127.5 - 1 for bytes_ in pictures.values())
        expected[digest(photo, edit)] = (f"{pair.concept}/{pair.id}", False)
        expected[digest(photo.flip(2), edit.flip(2))] = (f"{pair.concept}/{pair.id}", True)
    return expected


def check(
    name: str, one_pass: Iterator[tuple[Tensor, Tensor]], expected: dict[bytes, tuple[str, bool]], pairs: int
) -> None:
    """See that a pass gives each pair at most once, to the last bit, and mirrors some of them."""
    seen: list[tuple[str, bool]] = []
    for photo, edit in one_pass:
        for digest_ in map(digest, photo, edit):
            if digest_ not in expected:
                raise RuntimeError(f"{name} gives a pair that differs from every pair of the set")
            seen.append(expected[digest_])
    mirrored = sum(flag for _, flag in seen)
    if len(seen) != pairs or len(set(dict(seen))) != pairs or not 0 < mirrored < pairs:
        raise RuntimeError(f"{name} gives {len(seen)} pairs for {pairs}, {mirrored} of them mirrored, or some twice")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def megabytes(files: Iterator[Path]) -> float:
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink()) / 1e6


def page(options: argparse.Namespace, work: Path) -> str:
    """Prepare, check and time all loaders, and describe the result."""
    data = PairedImages(
        options.pairs, size=options.size, batch_size=options.batch_size, split=(1.0, 0.0, 0.0), cache=work / OURS
    )
    module = in_training(data)
    loaders: dict[str, Loader] = {}
    prepared: dict[str, tuple[float, float]] = {}
    listed = read_pairs(options.pairs)
    pairs = len(listed) // options.batch_size * options.batch_size
    expected = expected_digests(options.pairs, options.size)
    for name, prepare in LOADERS.items():
        folder = work / name
        folder.mkdir()
        print(f"preparing {name}", file=sys.stderr)
        start = time.perf_counter()
        loaders[name] = prepare(data, folder)
        prepared[name] = (time.perf_counter() - start, megabytes(folder.rglob("*")))
        check(name, floats_of(loaders[name], data, module), expected, pairs)
    cpu: dict[str, list[float]] = {name: [] for name in LOADERS}
    wall: dict[str, list[float]] = {name: [] for name in LOADERS}
    for repetition in range(options.repetitions):
        print(f"repetition {repetition}", file=sys.stderr)
        for name, loader in loaders.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for _ in floats_of(loader, data, module):
                pass
            cpu[name].append(pairs / (time.process_time() - cpu_start))
            wall[name].append(pairs / (time.perf_counter() - wall_start))

    lines = [
        "| loader | pairs per CPU second, median (min–max) | pairs per second | PairedImages gives | preparation, s "
        "| MB made |",
        "|---|---|---|---|---|---|",
    ]
    ratios = {}
    for name in LOADERS:
        of_passes = [our / their for our, their in zip(cpu[OURS], cpu[name], strict=True)]
        ratios[name] = statistics.median(of_passes)
        ratio = f"{ratios[name]:.2g} ({min(of_passes):.2g}–{max(of_passes):.2g}) times" if name != OURS else ""
        seconds, size = prepared[name]
        lines.append(f"| {name} | {spread(cpu[name])} | {spread(wall[name])} | {ratio} | {seconds:.1f} | {size:.1f} |")

    files = {options.pairs / name for pair in listed for name in (pair.photo_file_name, pair.edit_file_name)}
    compared = ", ".join(f"{ratio:.2g} times {name}'s" for name, ratio in ratios.items() if name != OURS)
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow", "litdata", "webdataset")
    )
    answer = f"PairedImages loads {statistics.median(cpu[OURS]):.0f} pairs in a CPU second. That is {compared}."
    reason = (
        "The gain over the next four is that of decoding once: PairedImages keeps the decoded bytes in a memory map, "
        f"here {prepared[OURS][1]:.1f} MB for {megabytes(iter(files)):.1f} MB of files. litdata and webdataset can "
        "store decoded pictures too; the last two rows measure that."
    )
    setting = (
        f"{len(listed)} pairs of {options.size} px, all files in the page cache. Every loader gives the same pairs, "
        f"shuffled, as two float batches of ({options.batch_size}, 3, {options.size}, {options.size}) in [-1, 1], half "
        "of the pairs mirrored; a first pass checks every pair bit by bit. The loaders take turns; "
        f"{options.repetitions} passes each. No loader processes. {os.cpu_count()} CPU cores, "
        f"threads: {options.threads}, {versions}, commit {commit()}"
    )
    return f"""# How many pairs does a CPU second load?
{textwrap.fill(answer, 118)}

{textwrap.fill(reason, 118)}

{textwrap.fill(setting, 118)}

{chr(10).join(lines)}

* PairedImages: `train_dataloader` with `on_after_batch_transfer`. Preparation reads each file, compares its digest and
  decodes it; a photo of several concepts is stored once.
* StreamedPairs: `train_dataloader` on what `pocketgan pairs convert --to litdata` wrote, pair by pair in the order of
  PairedImages; the preparation compares each file's digest.
* ImageFolder: two of them side by side, with the concepts as classes and links to the files.
* litdata: `optimize` with one process, whose start is in the preparation; chunks of 64 MB, `StreamingDataLoader`,
  files or tensors.
* webdataset: tar shards of 1,000 pairs, a shuffle buffer of 1,000, files or `.npy`.
* The others' bytes go through PairedImages' `on_after_batch_transfer` too.

```bash
python -m benchmarks.data_loading --pairs PAIR_SET --size {options.size} --batch-size {options.batch_size} \
--repetitions {options.repetitions} --threads {options.threads} > benchmarks/data_loading.md
```"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as work:
        # else litdata leaves its own working folders under /tmp
        os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = f"{work}/litdata-cache"
        os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = f"{work}/litdata-data"
        # progress bars are not part of the page
        with contextlib.redirect_stdout(sys.stderr):
            text = page(options, Path(work))
    print(text)
