"""A command on two processes, with a look at what each of them ends with."""

import subprocess
import sys

import torch


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
    ranks = ("--trainer.devices=2", f"--trainer.strategy={strategy}")
    subprocess.run([sys.executable, script, *words, *ranks], check=True, timeout=300)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
