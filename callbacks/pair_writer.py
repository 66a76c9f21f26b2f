"""Puts synthesised pairs on disk."""

import os
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from rich import get_console
from typing_extensions import override

from callbacks.background import Background
from datamodules.source_photos import SourcePhotos
from lightning_modules.pair_synthesis import PairSynthesis
from pocketgan.gates import Gate
from pocketgan.gates.judgement import mark_maker
from pocketgan.pair_set_writer import EditedPhoto, PairSetWriter

_VERSIONED = (
    "pocketgan",
    "torch",
    "pillow",
    "numpy",
    "scipy",
    "scikit-image",
    "onnxruntime",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "DeepCache",
)


class PairWriter(BasePredictionWriter):
    """Writes each batch of `PairSynthesis` while the next is made, and has finished pairs left out.

    Start the same command again after a kill, on as many processes as you like: the set comes out the same.

    Args:
        root: The pair set; made if it does not exist, continued if it does.
        image_format: "png", or "jpeg" at quality 95 without chroma subsampling: a quarter of the space, but a
            GAN learns JPEG's blocks.
        workers: Threads of a process that encode, measure and write; 0 writes between the batches.
    """

    def __init__(self, root: Path, image_format: Literal["png", "jpeg"] = "png", workers: int = 4) -> None:
        super().__init__(write_interval="batch")
        self.root = root
        self.image_format = image_format
        self.workers = workers
        self._background: Background[EditedPhoto, None] | None = None
        self._writer: PairSetWriter | None = None
        self._pairs_before = 0
        self._parent = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the set and say what is finished.

        Raises:
            TypeError: If the module is not PairSynthesis or the datamodule not SourcePhotos.
            ValueError: If the trainer's precision is not 32-true, or the set was made with other settings.
            RuntimeError: If another process is writing the set.
        """
        super().setup(trainer, pl_module, stage)
        module, datamodule = synthesis_of(trainer, pl_module)
        # Pairs are on disk once written; keeping them all would fill the memory.
        trainer.predict_loop.return_predictions = False
        settings = settings_of(trainer, module, datamodule, self.image_format)
        writer, done = self._opened(trainer, settings, module.gates)
        self._writer = writer
        self._pairs_before = len(writer.pairs)
        self._parent = os.getppid()
        self._background = Background(lambda pair: writer.write([pair]), self.workers)
        module.leave_out(done)
        datamodule.exclude({photo_id for photo_id, names in done.items() if names >= set(module.concepts)})

    def _opened(
        self, trainer: Trainer, settings: dict[str, Any], gates: dict[str, Gate]
    ) -> tuple[PairSetWriter, dict[str, set[str]]]:
        """The process's writer, and the pairs that are done: id to concepts."""
        # Rank 0 opens first and shares its refusal, or the others would wait for it for ever. All share its list of
        # what is done, too: photos dealt by different lists would leave gaps.
        opened: PairSetWriter | None = None
        refusal: Exception | None = None
        done: dict[str, set[str]] = {}
        if trainer.is_global_zero:
            try:
                opened = PairSetWriter(self.root, settings, gates=gates)
                done = opened.concepts_by_id()
            except Exception as error:
                refusal = error
        refusal, done = trainer.strategy.broadcast((refusal, done))
        if refusal is not None:
            raise refusal
        return opened or PairSetWriter(self.root, settings, trainer.global_rank, gates), done

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[EditedPhoto],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        assert self._background is not None, "setup opens it"
        self._background.submit(prediction)
        if trainer.local_rank and os.getppid() != self._parent:
            # Lightning's launcher ends the others when one of those that it started dies, but nobody sees to these when
            # it is killed itself: they would go on, then fail where they wait for rank 0
            raise RuntimeError(
                f"the process that started rank {trainer.global_rank} has ended; start the same command again, which "
                "goes on where this one was"
            )

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last batch, so that an error in writing it ends the run as any other does."""
        if self._background is not None:
            self._background.wait()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge what all processes wrote, and say what there is."""
        if self._writer is None or self._background is None:
            return
        self._background.close()
        if not trainer.is_global_zero:
            self._writer.close()
        trainer.strategy.barrier("pairs written")
        if trainer.is_global_zero:
            self._writer.close()
            self._report(self._writer, synthesis_of(trainer, pl_module)[1].skipped)
        self._writer = None

    def _report(self, writer: PairSetWriter, skipped: dict[str, str]) -> None:
        done = writer.concepts_by_id()
        concepts = {concept for concept, _ in writer.pairs}
        makers = Counter(mark_maker(pair.dropped) for pair in writer.pairs.values() if pair.dropped)
        dropped = ""
        if makers:
            listed = ", ".join(f"{maker} {count}" for maker, count in sorted(makers.items()))
            dropped = f"; {makers.total()} pairs are dropped ({listed}): see `pocketgan pairs inspect {self.root}`"
        if writer.had_other_gates:
            dropped += "; judged by this command's gates, which differ from those that the set had"
        line = (
            f"{len(writer.pairs) - self._pairs_before} pairs written to {self.root}, which now holds "
            f"{len(writer.pairs)} ({len(done)} photos, {len(concepts)} concepts); {len(skipped)} photos "
            f"skipped{dropped}"
        )
        # Through rich's console, which the progress bar may still be drawing on.
        get_console().print(line, markup=False, highlight=False, soft_wrap=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what is made and let go of the set; the next run merges the journals, since others may be writing."""
        if self._background is not None:
            self._background.close()
        if self._writer is not None:
            self._writer.close(merge=False)
            self._writer = None


def synthesis_of(trainer: Trainer, pl_module: LightningModule) -> tuple[PairSynthesis, SourcePhotos]:
    """The module and datamodule of a synthesis.

    Raises:
        TypeError: The module is not PairSynthesis or the datamodule not SourcePhotos.
        ValueError: The trainer's precision is not 32-true.
    """
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(datamodule, SourcePhotos):
        raise TypeError(f"PairWriter needs SourcePhotos as the datamodule, not {type(datamodule).__name__}")
    if not isinstance(pl_module, PairSynthesis):
        raise TypeError(f"PairWriter writes the pairs of PairSynthesis, not of {type(pl_module).__name__}")
    if trainer.precision != "32-true":
        raise ValueError(
            f"trainer.precision is {trainer.precision}, which would change the stored photos; "
            f"leave it at 32-true and give the teacher its own dtype"
        )
    return pl_module, datamodule


def settings_of(trainer: Trainer, module: PairSynthesis, datamodule: SourcePhotos, image_format: str) -> dict[str, Any]:
    """The manifest's content."""
    return {
        **module.settings,
        "photos": datamodule.settings,
        "image_format": image_format,
        "versions": {**_versions(), "device": trainer.strategy.root_device.type},
        "origin": module.teacher.origin,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
