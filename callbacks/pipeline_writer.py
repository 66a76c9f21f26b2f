"""A diffusion model from scratch as a pipeline of its own."""

from pathlib import Path

from diffusers import AutoencoderKL
from lightning.pytorch import LightningModule, Trainer

from callbacks.result_writer import ResultWriter
from lightning_modules import DiffusionTraining
from pocketgan.dit_pipeline import load_autoencoder
from pocketgan.files import whole_files


class PipelineWriter(ResultWriter):
    """Writes ``RUN/pipeline/`` at each validation: the averaged network, its noise levels, the classes.

    ``pocketgan.class_pipeline.load_class_pipeline`` opens it; ``ClassDiffusionTeacher`` edits photos with it.
    """

    serves = DiffusionTraining

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Load the autoencoder of latents once."""
        super().setup(trainer, pl_module, stage)
        name: str | None = trainer.datamodule.vae  # type: ignore[attr-defined]
        wanted = name is not None and stage == "fit" and trainer.is_global_zero
        self._vae: AutoencoderKL | None = load_autoencoder(str(name)) if wanted else None

    def write(self, module: DiffusionTraining, run: Path) -> None:
        """Write the averaged network."""
        data = module.labelled_data()
        with whole_files(run / "pipeline") as folder:
            module.pipeline(data.classes, data.latent_shape[-1], self._vae).save_pretrained(folder)
