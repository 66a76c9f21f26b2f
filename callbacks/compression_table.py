"""What a compression bought, as a table and a file."""

import json
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich import get_console
from rich.table import Table

from callbacks.console import say
from callbacks.trainer_state import write_into_run
from lightning_modules import ChannelCondensation
from pocketgan.compression import LatencyBudget, QualityBudget
from pocketgan.run_folder import COMPRESSION_FILE


class CompressionTable(Callback):
    """Prints widths, parameters, operations, milliseconds and validation L1 before and after, when a ``fit`` ends.

    The same goes to ``RUN/compression.json``, with a row for each stage or notch on the way.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Look at the module before anything is trained.

        Raises:
            TypeError: The run trains another module.
        """
        if not isinstance(pl_module, ChannelCondensation):
            raise TypeError(
                f"CompressionTable serves ChannelCondensation, this run trains a {type(pl_module).__name__}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure on every rank, write and print on the first."""
        assert isinstance(pl_module, ChannelCondensation)
        before, after = pl_module.before, pl_module.figures()
        if not trainer.is_global_zero:
            return
        found = {"before": before, "after": after, "trace": pl_module.trace, "kept": pl_module.kept}
        write_into_run(trainer, COMPRESSION_FILE, json.dumps(found, indent=2))
        get_console().print(compression_table(before, after, pl_module.target.size))
        say(outcome(pl_module, after))


def outcome(module: ChannelCondensation, after: dict[str, Any]) -> str:
    """What became of the rule, in a sentence."""
    rule = module.pruning
    if module.kept is None:
        return (
            f"not pruned: the budget ended at {module.images_seen} images, within condense_images "
            f"{module.condense_images}; go on with a larger budget.images and --ckpt_path last"
        )
    if isinstance(rule, LatencyBudget):
        said = "met" if after["latency_ms"] <= rule.budget_ms else "not met in this last measurement"
        return f"budget of {rule.budget_ms:g} ms {said}: {after['latency_ms']:.2f} ms"
    if isinstance(rule, QualityBudget):
        loss = after["val_loss"] / module.before["val_loss"] - 1
        return f"validation reconstruction {loss:+.1%}, at most {rule.max_quality_loss:+.1%} allowed; " + (
            "the search has ended" if module.is_settled else "the images ended before the last notch was judged"
        )
    return f"pruned by {rule}"


def compression_table(before: dict[str, Any], after: dict[str, Any], size: int) -> Table:
    """Figures of two networks side by side.

    Args:
        before: Of ``ChannelCondensation.figures``.
        after: Likewise.
        size: Side in pixels that operations and milliseconds are of.
    """
    table = Table("", "before", "after", "after / before")
    for name, width in before["widths"].items():
        other = after["widths"][name]
        table.add_row(f"width of {name}", str(width), str(other), f"{other / width:.2f}")
    for name, label, scale, digits in (
        ("parameters", "parameters", 1, 0),
        ("macs", f"MMACs at {size} px", 1e6, 1),
        ("latency_ms", f"ms at {size} px, median", 1, 2),
        ("val_loss", "validation reconstruction", 1, 4),
    ):
        one, other = before[name] / scale, after[name] / scale
        table.add_row(label, f"{one:,.{digits}f}", f"{other:,.{digits}f}", f"{other / one:.2f}")
    return table
