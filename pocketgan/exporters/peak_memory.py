"""How much memory an exported model takes, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RUNS = 3


def measure_peak_memory(target: str, path: Path, size: int, threads: int, concept: str | None = None) -> float | None:
    """Peak of resident memory that opening a model and editing photos adds to a process with its runtime, in MiB.

    Args:
        target: Name in ``EXPORTERS``.
        path: The exported file, or a pack's folder.
        size: Height and width of the photo in pixels.
        threads: To compute with.
        concept: Of a pack.

    Returns:
        None on systems without /proc (only Linux has it).

    Raises:
        RuntimeError: The process failed.
    """
    if not _STATUS.is_file():
        return None
    words = [target, str(path), str(size), str(threads), *([concept] if concept else [])]
    command = [sys.executable, "-m", "pocketgan.exporters.peak_memory", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"measuring the memory of {path} failed: {ended.stderr.strip()[-500:]}")
    return float(ended.stdout.split()[-1])


def _resident_mib(key: str) -> float:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def _main(target: str, path: str, size: str, threads: str, concept: str | None = None) -> None:
    from pocketgan.exporters import EXPORTERS
    from pocketgan.exporters.concept_pack import ConceptPack

    torch.set_num_threads(int(threads))
    exporter, photo = EXPORTERS[target](), torch.zeros(1, 3, int(size), int(size))
    exporter.import_runtime()  # whose Python packages take more than any model
    before = _resident_mib("VmRSS")
    if concept is None:
        model = exporter.load(Path(path), int(threads))
    else:
        model = ConceptPack(Path(path)).open(concept, int(threads))
    for _ in range(_RUNS):
        model(photo)
    sys.stdout.write(f"{_resident_mib('VmHWM') - before:.1f}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
