"""The layout's rules."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(
    path
    for top in (
        "callbacks",
        "configs",
        "datamodules",
        "lightning_modules",
        "pocketgan",
        "benchmarks",
        "docs",
        "tests",
    )
    for path in (ROOT / top, *(ROOT / top).glob("*"))
    if path.is_dir() and path.name != "__pycache__" and (path.parent == ROOT or path.parent.name == "pocketgan")
)


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("file", sorted((ROOT / "pocketgan").rglob("*.py")), ids=lambda file: file.name)
def test_pocketgan_is_plain_pytorch(file):
    if file.name not in {"cli.py", "__main__.py"}:
        assert not {"lightning", "pytorch_lightning"} & set(imported(file))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_each_folder_explains_itself_on_one_screen(folder):
    lines = (folder / "README.md").read_text().splitlines()
    assert 3 <= len(lines) <= 40
    assert lines[0].startswith("# ")
