"""A command on two processes, with a look at what each of them ends with."""

import multiprocessing
import os
import runpy
import sys
import time
from multiprocessing.connection import wait

import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.fabric.utilities.rank_zero import rank_zero_only

# imports once what each process would import for itself, which takes longer than most fits here; Lightning's own
# launcher, which starts the program anew, is tested in test_loss_tracking_early_stopping.py
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pocketgan.cli", "lightning_modules", "datamodules", "callbacks"])
_SECONDS = 300


def fit_on_two_ranks(folder, words, kept="model.state_dict()", before="", strategy="ddp"):
    """Run the command line on two gloo processes.

    Args:
        folder: For the script and what it leaves.
        words: Of `pocketgan`, without those for devices and strategy.
        kept: Expression of ``model`` that each process stores after its fit.
        before: Code that runs before the command.
        strategy: GANs, whose networks step in turn, need ``ddp_find_unused_parameters_true``.

    Returns:
        What rank 0 and rank 1 kept.

    Raises:
        RuntimeError: A process failed or took more than 300 s.
    """
    script = folder / "ranks.py"
    script.write_text(
        "import sys, torch\n"
        "from lightning.pytorch import Trainer\n"
        "from pocketgan.cli import main\n"
        f"{before}\n"
        "fit = Trainer.fit\n"
        "def kept(self, model, *args, **kwargs):\n"
        "    fit(self, model, *args, **kwargs)\n"
        f"    torch.save({kept}, r'{folder}/rank' + str(self.global_rank) + '.pt')\n"
        "Trainer.fit = kept\n"
        "main(sys.argv[1:])\n"
    )
    words = [*map(str, words), "--trainer.devices=2", f"--trainer.strategy={strategy}"]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "WORLD_SIZE": "2"}
    ranks = []
    deadline = time.monotonic() + _SECONDS
    try:
        for rank in range(2):
            environment = {**os.environ, **place, "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
            process = _PROCESSES.Process(target=_run, args=(str(script), words, environment))
            process.start()
            ranks.append(process)
        running = {process.sentinel: process for process in ranks}
        while running:
            ended = wait(running, max(0.0, deadline - time.monotonic()))
            if not ended or any(running.pop(sentinel).exitcode for sentinel in ended):
                raise RuntimeError(f"exit codes of the ranks: {[process.exitcode for process in ranks]}")
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def _run(script, words, environment):
    """As ``python script words`` in an environment, which Lightning's import looks at."""
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = int(environment["LOCAL_RANK"])
    np.random.seed(None)  # noqa: NPY002  # as after an import of its own
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")
