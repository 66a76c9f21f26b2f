"""The adapter as files of its own."""

from pathlib import Path

from callbacks.result_writer import ResultWriter
from lightning_modules import LoRAAdaptation
from pocketgan.adapters import save_adapter


class AdapterWriter(ResultWriter):
    """Writes ``RUN/adapter/`` at each validation, the last one included: PEFT's files and the concept's prompt tokens.

    It is all that a concept needs beside its base; the discriminator stays behind in the checkpoint.
    """

    serves = LoRAAdaptation

    def write(self, module: LoRAAdaptation, run: Path) -> None:
        """Write the averaged adapter."""
        tokens = module.text_encoder_ema([module.concept], [module.prompts[module.concept]])[0]
        save_adapter(module.adapter, tokens, run / "adapter", module.concept, module.base_identity)
