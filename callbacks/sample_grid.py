"""Pictures of a training as it goes on."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch.utils.data import DataLoader, Subset

from callbacks.trainer_state import is_validating_a_fit, validation_precision
from callbacks.unstopping_logger import UnstoppingLogger
from lightning_modules import AdversarialModule
from pocketgan.images import to_image
from pocketgan.report import comparison_sheet, sheet_boxes

CELL = 192


class SampleGrid(Callback):
    """At each validation, a sheet of fixed validation pictures: of a paired GAN photo, teacher and GAN, in columns.

    ``RUN/samples/images_00001400.png``, numbered by images seen, and the loggers that show pictures get it. Modules
    that are no GANs are left alone. It draws no random numbers of the training's.

    Args:
        pictures: Rows, evenly over the validation split; 0 makes none.

    Raises:
        ValueError: Fewer than none.
    """

    def __init__(self, pictures: int = 6) -> None:
        if pictures < 0:
            raise ValueError(f"samples of {pictures} pictures; give 0 for none, or how many")
        self.pictures = pictures

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the sheet on rank 0, from its share of the split."""
        is_asked = self.pictures and trainer.is_global_zero and is_validating_a_fit(trainer)
        if not is_asked or not isinstance(pl_module, AdversarialModule):
            return
        columns = self._columns(trainer, pl_module)
        if not columns:
            return
        first = next(iter(columns.values()))
        side = min(CELL, first[0].width)
        sheet = comparison_sheet(columns, side)
        layout = {"columns": list(columns), "boxes": sheet_boxes(len(first), len(columns), side)}
        information = PngInfo()
        information.add_text("layout", json.dumps(layout))
        folder = Path(trainer.default_root_dir) / "samples"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sheet.save(folder / f"images_{pl_module.images_seen:08d}.png", pnginfo=information)
        except OSError as error:  # rank 0 alone would stop, the others would wait for it
            rank_zero_warn(f"no sample is written: {error}")
        for logger in trainer.loggers:
            if isinstance(logger, UnstoppingLogger):
                logger.log_pictures("samples", {" | ".join(columns): sheet}, pl_module.images_seen)

    @torch.no_grad()
    def _columns(self, trainer: Trainer, module: AdversarialModule) -> dict[str, list[Image.Image]]:
        loader: DataLoader[Any] = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        count = len(loader.dataset)  # type: ignore[arg-type]
        shown = min(self.pictures, count)
        # evenly over the split: neighbours are of one concept, or crops of one photo
        places = [number * count // shown for number in range(shown)]
        chosen = DataLoader(
            Subset(loader.dataset, places), loader.batch_size, collate_fn=loader.collate_fn, generator=torch.Generator()
        )
        columns: dict[str, list[Image.Image]] = {}
        with validation_precision(trainer):
            for batch in chosen:
                for title, pictures in module.pictures(trainer.strategy.batch_to_device(batch)).items():
                    columns.setdefault(title, []).extend(to_image(picture) for picture in pictures.float())
        return columns
