"""Fixtures that tests share."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny import fit_adapter, fit_base, make_pair_set


def pytest_configure() -> None:
    """Prepare each worker and the processes that it starts."""
    # one thread for each: several of more slow each other down
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # a shell starts what runs in its background deaf to Ctrl-C, by which tests end servers and cameras
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no files outside tmp_path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pair_set(tmp_path: Path) -> Path:
    """12 photos of 32 px, concepts inverted and sepia."""
    return make_pair_set(tmp_path / "pairs")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny pair set, a base trained on one of its concepts, and an adapter to the other; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    pairs = make_pair_set(folder / "pairs")
    base = fit_base(pairs, folder / "base", "--data.concepts=[inverted]")
    adapter = fit_adapter(pairs, base, folder / "sepia", "--data.concepts=[sepia]")
    return {"pairs": pairs, "base": base, "adapter": adapter}
