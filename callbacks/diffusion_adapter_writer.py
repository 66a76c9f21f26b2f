"""A diffusion transformer's adapter as a file of its own."""

from pathlib import Path

from callbacks.result_writer import ResultWriter
from lightning_modules import DiffusionAdaptation
from pocketgan.adapters import save_diffusion_adapter
from pocketgan.compression import plain_tensors


class DiffusionAdapterWriter(ResultWriter):
    """Writes ``RUN/adapter/adapter.safetensors`` at each validation: the averaged tensors that train, nothing else.

    ``pocketgan.adapters.load_diffusion_adapter`` puts it on its base.
    """

    serves = DiffusionAdaptation

    def write(self, module: DiffusionAdaptation, run: Path) -> None:
        """Write the averaged tensors."""
        save_diffusion_adapter(
            run / "adapter",
            module.adapter,
            plain_tensors(module.transformer, module.averaged),
            module.classes,
            module.new_classes,
            module.base_sha256,
        )
