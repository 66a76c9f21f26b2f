"""A sweep at Weights & Biases."""

import subprocess
import sys

from pocketgan.sweep import Sweep


def run_wandb_sweep(sweep: Sweep, project: str, entity: str | None, trials: int | None) -> str:
    """Register a sweep and run one agent for it here; others may join from other machines.

    Args:
        sweep: The file.
        project: Of Weights & Biases.
        entity: Its user or team; the account's own if None.
        trials: Runs that this agent makes; as many as the sweep has if None.

    Returns:
        The sweep's id.

    Raises:
        ValueError: This machine has no key of Weights & Biases.
        RuntimeError: The agent failed.
    """
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise ValueError(
            "a sweep at Weights & Biases needs its key: run `wandb login` or set WANDB_API_KEY; --local runs the same "
            "file with no account"
        )
    number = wandb.sweep(sweep.raw, entity=entity, project=project)
    path = "/".join(filter(None, (entity, project, number)))
    print(f"sweep {path}; more agents, on any machine: wandb agent {path}", flush=True)  # noqa: T201
    count = [] if trials is None else ["--count", str(trials)]
    if subprocess.run([sys.executable, "-m", "wandb", "agent", *count, path], check=False).returncode:
        raise RuntimeError(f"the agent of sweep {path} failed; start it again with `wandb agent {path}`")
    return number
