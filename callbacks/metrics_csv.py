"""A run's figures in its folder."""

import csv
import functools
import io
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from callbacks.unstopping_logger import UnstoppingLogger
from pocketgan.files import write_whole


class _AppendingWriter(ExperimentWriter):
    """Goes on in an existing metrics.csv, where Lightning's own deletes it."""

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if file.is_file():
            with file.open() as lines:
                self.metrics_keys = sorted(next(lines, "").strip().split(","))


class MetricsCSV(UnstoppingLogger, CSVLogger):
    """``metrics.csv`` in the run folder itself; a resumed run adds to it.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(save_dir=run, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> _AppendingWriter:
        """Lightning's writer, made to append."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment: _AppendingWriter | None = _AppendingWriter(log_dir=self.log_dir)
        return self._experiment

    @rank_zero_only
    def forget_after(self, images: int) -> None:
        """Drop what a run logged after the checkpoint that it goes on from, and will log again.

        Args:
            images: Seen by the checkpoint.
        """
        file = Path(self.log_dir) / "metrics.csv"
        if file.is_file():
            self.attempt("forget_after", functools.partial(_drop_after, file, images))


def _drop_after(file: Path, images: int) -> None:
    with file.open(newline="") as lines:
        names, *rows = csv.reader(lines)
    if "images" in names:
        place = names.index("images")
        rows = [row for row in rows if len(row) == len(names) and (not row[place] or float(row[place]) <= images)]
    text = io.StringIO()
    csv.writer(text).writerows([names, *rows])
    write_whole(file, text.getvalue().encode())
