"""What all converters need: their chatter kept back, their refusals put plainly."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Python code logs, warns and prints; errors are raised all the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def lacks(target: str, error: Exception, program: torch.export.ExportedProgram) -> ValueError:
    """Make a refusal of a converter's error.

    Args:
        target: The format.
        error: What its converter raised.
        program: What it was to convert: names the operations where the error does not.
    """
    said = str(error).strip()
    operations = sorted(set(re.findall(r"(?:\baten(?:\.|::)|\bop '|\bfx node )(\w+)", said)))
    if not operations:
        every = {str(node.target).split(".")[1] for node in program.graph.nodes if str(node.target).startswith("aten.")}
        operations = sorted(every)
    line = said.splitlines()[0][:300] if said else "nothing more"
    return ValueError(
        f"{target} lacks an operation of the network: {' or '.join(operations)}; replace it in the network, or export "
        f"to another target. The converter says: {line}"
    )
