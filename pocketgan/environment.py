"""What a run was made on and with, for its folder and its report."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("pocketgan", "torch", "torchvision", "lightning", "diffusers", "peft", "onnxruntime", "wandb")


def describe_environment() -> dict[str, Any]:
    """Code version, packages and hardware of this process.

    Returns:
        Plain values by name; ``commit`` is that of the source's repository with ``+changes`` where files differ from
        it, None where the source is no repository.
    """
    return {
        "commit": code_version(Path(__file__).parent),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def code_version(folder: Path) -> str | None:
    """The commit that a folder is at, with ``+changes`` where files differ from it; None outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
