"""The README's commands: they parse, and what they name exists."""

import inspect
import re
import shlex
from pathlib import Path

import pytest

from pocketgan import cli
from pocketgan.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line.removeprefix("pocketgan ") for line in BLOCKS.splitlines() if line.startswith("pocketgan ")]


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.split()[0] in {"fit", "predict"}])
def test_lightning_commands_parse(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(command), "--print_config"])
    assert stop.value.code == 0
    assert "class_path" in capsys.readouterr().out


def function_command(line):
    """The name of one or two words that a line begins with, if it is a function's."""
    return next((name for name in cli.COMMANDS if f"{line} ".startswith(f"{name} ")), None)


@pytest.mark.parametrize("command", [line for line in COMMANDS if function_command(line)])
def test_function_commands_parse(command, monkeypatch):
    name = function_command(command)
    words = shlex.split(command.removeprefix(name))
    called = []

    def stand_in(**arguments):
        called.append(arguments)

    stand_in.__name__, stand_in.__doc__ = name, cli.COMMANDS[name].__doc__
    stand_in.__signature__ = inspect.signature(cli.COMMANDS[name])
    cli.run_function(stand_in, words)
    assert called


FOLDERS = ("benchmarks", "callbacks", "configs", "datamodules", "docs", "lightning_modules", "pocketgan", "tests")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_command_of_the_readme_is_known():
    assert {function_command(line) or line.split()[0] for line in COMMANDS} <= {*cli.LIGHTNING_COMMANDS, *cli.COMMANDS}
    assert len(COMMANDS) >= 6
