"""What a synthesis will take, before it is begun."""

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from callbacks.background import Background
from callbacks.console import say
from callbacks.pair_writer import PairWriter, settings_of, synthesis_of
from pocketgan.pair_set import complete_pairs, concepts_by_id
from pocketgan.pair_set_writer import EditedPhoto, PreparedPair, check_settings, prepared

SAMPLE_BATCHES = 3


class ToMake(NamedTuple):
    """What a synthesis has before it.

    Attributes:
        photos: Of the datamodule.
        concepts: Of the module.
        pairs: That are not in the set yet.
        new_photos: That have no pair in the set yet.
    """

    photos: int
    concepts: int
    pairs: int
    new_photos: int


class Sample(NamedTuple):
    """What one process made for the estimate.

    Attributes:
        pairs: Made.
        seconds: That they took.
        photo_bytes: Of their photos as files.
        edit_bytes: Of their edits as files.
    """

    pairs: int
    seconds: float
    photo_bytes: int
    edit_bytes: int


class PairEstimate(Callback):
    """Stands in for `PairWriter` when ``pocketgan predict --dry-run`` asks what the run would take; writes nothing.

    Every process edits a warm-up batch and then up to two more, each photo with one of its missing concepts, on the
    run's own devices and all at once, as they would in the run. Timed is all from loading to encoding and to the gates
    that judge a pair by itself, in threads beside the teacher as the writer has them; the writing is not. Photos that
    will prove unreadable are counted as if they could be read.

    Args:
        root: The pair set, which need not exist.
        image_format: As of the `PairWriter`.
        workers: As of the `PairWriter`.
    """

    def __init__(self, root: Path, image_format: str, workers: int) -> None:
        self._root = root
        self._image_format = image_format
        self._workers = workers
        self._to_make = ToMake(0, 0, 0, 0)
        self._sample = Sample(0, 0, 0, 0)
        self._start = 0.0
        self._start_of_second = 0.0
        self._prepared: list[PreparedPair] = []

    @classmethod
    def of(cls, writer: PairWriter) -> "PairEstimate":
        """The estimate of what a writer would write."""
        return cls(writer.root, writer.image_format, writer.workers)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Count what is to be made.

        Raises:
            TypeError: As of `PairWriter`.
            ValueError: As of `PairWriter`.
        """
        module, datamodule = synthesis_of(trainer, pl_module)
        check_settings(self._root, settings_of(trainer, module, datamodule, self._image_format))
        trainer.predict_loop.return_predictions = False
        self._background = Background(
            partial(prepared, image_format=self._image_format, gates=module.gates), self._workers
        )
        done, wanted = concepts_by_id(complete_pairs(self._root)), list(module.concepts)
        missing = {name: [each for each in wanted if each not in done.get(name, ())] for name in datamodule.ids}
        self._to_make = ToMake(
            photos=len(missing),
            concepts=len(wanted),
            pairs=sum(len(concepts) for concepts in missing.values()),
            new_photos=sum(name not in done for name in missing),
        )
        module.leave_out({name: set(wanted) - set(concepts[:1]) for name, concepts in missing.items()})
        datamodule.exclude({name for name, concepts in missing.items() if not concepts})

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, for the case that there is but one batch."""
        self._start = time.perf_counter()

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[EditedPhoto],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the batch into the sample, which the second begins anew: the first has warmed up."""
        if batch_idx == 1:
            self._prepared, self._start = [], self._start_of_second
        self._prepared += self._background.submit(outputs)
        if batch_idx == 0:
            self._prepared += self._background.wait()
            self._start_of_second = time.perf_counter()

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._prepared += self._background.wait()
        self._sample = Sample(
            len(self._prepared),
            time.perf_counter() - self._start,
            sum(len(pair.photo) for pair in self._prepared),
            sum(len(pair.edit) for pair in self._prepared),
        )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say what the run will take, by the samples of all processes."""
        self._background.close()
        samples = [self._sample] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(samples, self._sample)
        if trainer.is_global_zero:
            for line in estimate(self._to_make, samples):
                say(line)


def estimate(to_make: ToMake, samples: list[Sample]) -> list[str]:
    """What a run will take, in lines.

    Args:
        to_make: What there is to make.
        samples: One of each process.
    """
    lines = [
        f"photos         {to_make.photos}, {to_make.new_photos} of them new to the set",
        f"concepts       {to_make.concepts}",
        f"pairs to make  {to_make.pairs} of {to_make.photos * to_make.concepts}",
    ]
    timed = [sample for sample in samples if sample.pairs]
    if not to_make.pairs or not timed:
        return [*lines, "there is nothing to make" if not to_make.pairs else "no photo of the sample could be read"]
    pairs = sum(sample.pairs for sample in timed)
    photo_bytes, edit_bytes = (
        sum(sizes) / pairs for sizes in zip(*((sample.photo_bytes, sample.edit_bytes) for sample in timed), strict=True)
    )
    megabytes = (to_make.new_photos * photo_bytes + to_make.pairs * edit_bytes) / 1e6
    # one that had no photo of the sample will be as fast as the others
    pairs_per_second = len(samples) * sum(sample.pairs / sample.seconds for sample in timed) / len(timed)
    hours = to_make.pairs / pairs_per_second / 3600
    processes = "process" if len(samples) == 1 else "processes"
    return [
        *lines,
        f"on disk        {megabytes:.1f} MB: {photo_bytes / 1e3:.1f} kB a photo, {edit_bytes / 1e3:.1f} kB an edit",
        f"time           {hours:.2f} hours on {len(samples)} {processes}: "
        f"{len(samples) / pairs_per_second:.3g} s a pair and process, timed on {pairs} pairs",
        "nothing was written",
    ]
