"""Does writing hold up a teacher on a GPU? Share of a synthesis that is neither loading nor editing.

The teacher is a stand-in that leaves the processor alone while it takes its time, as one on a GPU mostly does, and
gives back the photo with its colours turned round and darker.

python -m benchmarks.pair_writing --photos FOLDER --out benchmarks/pair_writing.md
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import override

from benchmarks.runs import commit
from callbacks import PairWriter
from datamodules import SourcePhotos
from lightning_modules import PairSynthesis
from pocketgan.files import write_whole
from pocketgan.gates import AlignmentGate, ExposureGate, Gate, NearDuplicateGate, StructureGate
from pocketgan.teachers import Teacher

PHOTOS, REPETITIONS = 40, 3
SIZE = 512
SECONDS_AN_EDIT = 0.5
WORKERS = (0, 2, 4)


class WaitingTeacher(Teacher):
    """Takes its time and no processor."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    @property
    @override
    def concepts(self) -> dict[str, str]:
        return {"turned": "turn the colours round"}

    @property
    @override
    def settings(self) -> dict[str, Any]:
        return {"name": type(self).__name__}

    @override
    def edit(self, photos: Tensor, prompt: str, seeds: list[int]) -> Tensor:
        time.sleep(self._seconds * len(seeds))
        return photos.flip(1) * 0.8


def seconds(photos: Path, gates: dict[str, Gate | None], workers: int | None) -> tuple[float, float]:
    """Wall and processor time of a synthesis; without a writer if ``workers`` is None."""
    module = PairSynthesis(WaitingTeacher(SECONDS_AN_EDIT), size=SIZE, gates=gates)
    data = SourcePhotos(photos, size=SIZE, batch_size=1, minimum_side=SIZE, crops_per_photo=4, limit=PHOTOS)
    with tempfile.TemporaryDirectory() as folder:
        writers = [] if workers is None else [PairWriter(Path(folder) / "set", workers=workers)]
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=writers,
        )
        wall, processor = time.perf_counter(), time.process_time()
        trainer.predict(module, datamodule=data, return_predictions=False)
        taken = time.perf_counter() - wall, time.process_time() - processor
        assert len(data.ids) == PHOTOS, f"{photos} holds too few photos"
        assert not data.skipped, f"{photos} holds photos below {SIZE} px"
        return taken


def table(photos: Path) -> Iterator[str]:
    """The result, line by line."""
    four = {
        "alignment": AlignmentGate(),
        "structure": StructureGate(),
        "exposure": ExposureGate(),
        "near_duplicate": NearDuplicateGate(),
    }
    seconds(photos, {}, WORKERS[0])  # the first imports and compiles
    yield "| gates | threads | share of the run, writing | processor time a pair |\n|---|---|---|---|"
    for name, gates in (("none", {}), ("four", four)):
        sides: dict[int | None, list[tuple[float, float]]] = {workers: [] for workers in (None, *WORKERS)}
        for _ in range(REPETITIONS):
            for workers, measured in sides.items():
                measured.append(seconds(photos, dict(gates), workers))
        for workers in WORKERS:
            pairs = list(zip(sides[workers], sides[None], strict=True))
            shares = [100 * (1 - without / wall) for (wall, _), (without, _) in pairs]
            processor = [1e3 * (busy - without) / PHOTOS for (_, busy), (_, without) in pairs]
            yield (
                f"| {name} | {workers} | {mean(shares):.1f} ± {stdev(shares):.1f} % | "
                f"{mean(processor):.0f} ± {stdev(processor):.0f} ms |"
            )


def main(photos: Path, out: Path) -> None:
    """Write the page."""
    torch.set_num_threads(1)
    page = [
        "# Does writing hold up a teacher on a GPU?\n\n"
        "```bash\npython -m benchmarks.pair_writing --photos FOLDER --out benchmarks/pair_writing.md\n```\n",
        f"{PHOTOS} crops of real photos at {SIZE} px, PNG, {SECONDS_AN_EDIT} s an edit from a stand-in that leaves the "
        f"processor\nalone, {os.cpu_count()} cores, {REPETITIONS} repetitions with the sides in turn, mean ± standard "
        f"deviation, commit {commit()}.\nShare: what the run takes longer than the same run without a writer. Gates: "
        "alignment, structure,\nexposure, near-duplicates. The processor time must fit beside the teacher: cores x "
        "seconds an edit.\n",
    ]
    for line in table(photos):
        page.append(line)
        write_whole(out, ("\n".join(page) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    main(options.photos, options.out)
