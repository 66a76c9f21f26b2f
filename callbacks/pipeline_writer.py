"""A diffusion model from scratch as a pipeline of its own."""

from pathlib import Path

from callbacks.result_writer import ResultWriter
from lightning_modules import DiffusionTraining
from pocketgan.dit_pipeline import load_autoencoder
from pocketgan.files import whole_files


class PipelineWriter(ResultWriter):
    """Writes ``RUN/pipeline/`` at each validation: the averaged network, its noise levels, the classes.

    ``pocketgan.class_pipeline.load_class_pipeline`` opens it; ``ClassDiffusionTeacher`` edits photos with it.
    """

    serves = DiffusionTraining

    def write(self, module: DiffusionTraining, run: Path) -> None:
        """Write the averaged network."""
        data = module.labelled_data()
        vae = load_autoencoder(data.vae) if data.vae else None
        with whole_files(run / "pipeline") as folder:
            module.pipeline(data.classes, data.latent_shape[-1], vae).save_pretrained(folder)
