"""The personalization as files of its own."""

from pathlib import Path

from callbacks.result_writer import ResultWriter
from lightning_modules import Personalization
from pocketgan.files import whole_files

FOLDER = "personalization"


class PersonalizationWriter(ResultWriter):
    """Writes ``RUN/personalization/`` at each validation: what diffusers loads, each file whole.

    A run that its budget or early stopping ends is validated, and so stored, as it ended.
    """

    serves = Personalization

    def write(self, module: Personalization, run: Path) -> None:
        """Write what is trained so far."""
        with whole_files(run / FOLDER) as folder:
            module.method.save(folder)
