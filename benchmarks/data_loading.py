"""How many pairs does a CPU second load: PairedImages against ImageFolder, litdata and webdataset on the same pairs?

pip install -c constraints.txt -e '.[benchmark]'
python benchmarks/data_loading.py --pairs PAIR_SET > benchmarks/data_loading.md
"""

import argparse
import contextlib
import hashlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
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

from datamodules import PairedImages
from pocketgan.pair_set import Pair, read_pairs

# a pass: batches of photos and edits (B, 3, H, W) in [-1, 1]
Pass = Callable[[], Iterator[tuple[Tensor, Tensor]]]
OURS = "PairedImages"


def picture(file: Any) -> np.ndarray:
    return np.array(Image.open(file).convert("RGB"))


def augmented_floats(photo: Tensor, edit: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H, W, 3) bytes to floats, half of the pairs mirrored: what the other loaders' batches need in training."""
    mirrored = torch.rand(len(photo)) < 0.5
    for pictures in (photo, edit):
        pictures[mirrored] = pictures[mirrored].flip(2)
    return photo.permute(0, 3, 1, 2).float() / 127.5 - 1, edit.permute(0, 3, 1, 2).float() / 127.5 - 1


def paired_images(root: Path, folder: Path, size: int, batch_size: int) -> Pass:
    data = PairedImages(root, size=size, batch_size=batch_size, split=(1.0, 0.0, 0.0), cache=folder)
    data.setup("fit")
    module = SimpleNamespace(images_seen=0)
    # all that the datamodule asks of a trainer
    trainer: Any = SimpleNamespace(training=True, global_rank=0, world_size=1, lightning_module=module)
    data.trainer = trainer
    loader = data.train_dataloader()

    def one_pass() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            floats = data.on_after_batch_transfer(batch, 0)
            yield floats["photo"], floats["edit"]
            module.images_seen += batch_size

    return one_pass


class ImageFolderPairs(Dataset[tuple[Tensor, Tensor]]):
    """Two ImageFolders side by side, the concepts being the classes; the photos are links, one for each edit."""

    def __init__(self, root: Path, folder: Path) -> None:
        for pair in read_pairs(root):
            for side, file_name in (("photos", pair.photo_file_name), ("edits", pair.edit_file_name)):
                link = folder / side / pair.concept / Path(pair.edit_file_name).name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((root / file_name).resolve())
        self.photos, self.edits = (ImageFolder(str(folder / side), transform=np.array) for side in ("photos", "edits"))

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.edits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Photo and edit, (H, W, 3) bytes."""
        return torch.from_numpy(self.photos[index][0]), torch.from_numpy(self.edits[index][0])


def image_folder(root: Path, folder: Path, size: int, batch_size: int) -> Pass:  # noqa: ARG001
    loader = DataLoader(ImageFolderPairs(root, folder), batch_size, shuffle=True, drop_last=True)
    return lambda: (augmented_floats(photo, edit) for photo, edit in loader)


def file_contents(root: Path, pair: Pair) -> dict[str, bytes]:
    return {
        "photo": (root / pair.photo_file_name).read_bytes(),
        "edit": (root / pair.edit_file_name).read_bytes(),
    }


def decoded_pair(root: Path, pair: Pair) -> dict[str, Tensor]:
    return {
        "photo": torch.from_numpy(picture(root / pair.photo_file_name)),
        "edit": torch.from_numpy(picture(root / pair.edit_file_name)),
    }


class LitdataFiles(litdata.StreamingDataset):
    """Decodes the files that the chunks hold."""

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """Photo and edit, (H, W, 3) bytes."""
        item = super().__getitem__(index)
        return {side: torch.from_numpy(picture(io.BytesIO(content))) for side, content in item.items()}


def litdata_chunks(root: Path, folder: Path, size: int, batch_size: int, decoded: bool) -> Pass:  # noqa: ARG001
    # litdata starts a process of its own for this, to which lambdas cannot be sent
    function = partial(decoded_pair if decoded else file_contents, root)
    litdata.optimize(
        function, read_pairs(root), str(folder / "chunks"), chunk_bytes="64MB", num_workers=1, verbose=False
    )
    dataset = (litdata.StreamingDataset if decoded else LitdataFiles)(str(folder / "chunks"), shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=batch_size, drop_last=True)
    return lambda: (augmented_floats(batch["photo"], batch["edit"]) for batch in loader)


def webdataset_shards(root: Path, folder: Path, size: int, batch_size: int, decoded: bool) -> Pass:  # noqa: ARG001
    suffix = "npy" if decoded else "png"
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for number, pair in enumerate(read_pairs(root)):
            sides = {
                f"{side}.{suffix}": value.numpy() if isinstance(value, Tensor) else value
                for side, value in (decoded_pair if decoded else file_contents)(root, pair).items()
            }
            writer.write({"__key__": f"{number:06d}", **sides})
    shards = sorted(str(file) for file in folder.glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(1000)
        .decode("rgb8")
        .to_tuple(f"photo.{suffix}", f"edit.{suffix}")
        .batched(batch_size, partial=False)
    )
    loader = DataLoader(dataset, batch_size=None)
    return lambda: (augmented_floats(photo, edit) for photo, edit in loader)


LOADERS: dict[str, Callable[[Path, Path, int, int], Pass]] = {
    OURS: paired_images,
    "ImageFolder": image_folder,
    "litdata": partial(litdata_chunks, decoded=False),
    "webdataset": partial(webdataset_shards, decoded=False),
    "litdata, decoded": partial(litdata_chunks, decoded=True),
    "webdataset, decoded": partial(webdataset_shards, decoded=True),
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


def check(name: str, one_pass: Pass, expected: dict[bytes, tuple[str, bool]], pairs: int) -> None:
    """See that a pass gives each pair at most once, to the last bit, and mirrors some of them."""
    seen: list[tuple[str, bool]] = []
    for photo, edit in one_pass():
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
    passes: dict[str, Pass] = {}
    prepared: dict[str, tuple[float, float]] = {}
    listed = read_pairs(options.pairs)
    pairs = len(listed) // options.batch_size * options.batch_size
    expected = expected_digests(options.pairs, options.size)
    for name, prepare in LOADERS.items():
        folder = work / name.replace(", ", "-")
        folder.mkdir()
        print(f"preparing {name}", file=sys.stderr)
        start = time.perf_counter()
        passes[name] = prepare(options.pairs, folder, options.size, options.batch_size)
        prepared[name] = (time.perf_counter() - start, megabytes(folder.rglob("*")))
        check(name, passes[name], expected, pairs)
    cpu: dict[str, list[float]] = {name: [] for name in LOADERS}
    wall: dict[str, list[float]] = {name: [] for name in LOADERS}
    for repetition in range(options.repetitions):
        print(f"repetition {repetition}", file=sys.stderr)
        for name, one_pass in passes.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for _ in one_pass():
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
    answer = textwrap.fill(
        f"PairedImages loads {statistics.median(cpu[OURS]):.0f} pairs in a CPU second. That is {compared}.", 118
    )
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow", "litdata", "webdataset")
    )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return f"""# How many pairs does a CPU second load?
{answer}

The gain over the first three is that of decoding once: PairedImages keeps the decoded bytes in a memory map. litdata
and webdataset can store decoded pictures too; the last two rows measure that.

{len(listed)} pairs of {options.size} px ({megabytes(iter(files)):.1f} MB of files), batches of {options.batch_size}, \
all files in the page cache.
Every loader gives the same shuffled float batches, two of ({options.batch_size}, 3, {options.size}, {options.size}) \
in [-1, 1], half of the pairs mirrored; a first
pass checks every pair bit by bit. The loaders take turns; {options.repetitions} passes each. No loader processes. \
{os.cpu_count()} CPU cores,
threads: {options.threads}, {versions},
commit {commit.stdout.strip()}

{chr(10).join(lines)}

* PairedImages: `train_dataloader` with `on_after_batch_transfer`. Preparation reads each file, compares its digest and
  decodes it; a photo of several concepts is stored once.
* ImageFolder: two of them side by side, with the concepts as classes and links to the files.
* litdata: `optimize` with one process, whose start is in the preparation; chunks of 64 MB, `StreamingDataLoader`,
  files or tensors.
* webdataset: tar shards of 1,000 pairs, a shuffle buffer of 1,000, files or `.npy`.
* The last four share one function for mirroring and floats, on whole batches; so does ImageFolder.

```bash
python benchmarks/data_loading.py --pairs PAIR_SET --size {options.size} --batch-size {options.batch_size} \
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
