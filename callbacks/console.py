"""What callbacks tell the user."""

from rich import get_console


def say(line: str) -> None:
    """Print one line as it is, above a progress bar where one runs."""
    get_console().print(line, markup=False, highlight=False, soft_wrap=True)
