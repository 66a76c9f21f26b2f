"""A run's config, from its folder or from Weights & Biases."""

from pathlib import Path
from typing import Any

import yaml

# what SaveRunConfig tells loggers beside the config, and what Weights & Biases adds of its own
NO_SETTINGS = ("environment", "pair_set", "_wandb")


def config_of_run(run: str) -> str:
    """The YAML of a run.

    Args:
        run: Run folder, or ENTITY/PROJECT/ID at Weights & Biases.

    Raises:
        FileNotFoundError: It is neither.
        ValueError: Weights & Biases' run holds no config of pocketgan.
    """
    file = Path(run) / "config.yaml"
    if file.is_file():
        return file.read_text()
    if Path(run).exists() or run.count("/") != 2:
        raise FileNotFoundError(
            f"{run} is neither a run folder (no config.yaml in it) nor ENTITY/PROJECT/ID at Weights & Biases"
        )
    found = _config_at_wandb(run)
    config = {key: value for key, value in found.items() if key not in NO_SETTINGS}
    if "model" not in config:
        raise ValueError(f"{run} at Weights & Biases was not logged by pocketgan: its config has no model")
    return yaml.safe_dump(config, sort_keys=False)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values of a nested config by their paths.

    A class in a list stands under its name, such as ``trainer.callbacks.RankSearch.factors``, numbered from 1 where it
    comes several times: ``trainer.callbacks.NToMSparsity[2].n``. Any other list is one value.
    """
    if isinstance(config, list) and config and all(isinstance(one, dict) and "class_path" in one for one in config):
        return {
            key: value
            for name, one in _by_class(config).items()
            for key, value in {
                f"{prefix}.{name}": one["class_path"],
                **(flat(one["init_args"], f"{prefix}.{name}") if one.get("init_args") else {}),
            }.items()
        }
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        key: value
        for name, inner in config.items()
        for key, value in flat(inner, f"{prefix}.{name}".strip(".")).items()
    }


def _by_class(listed: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    names = [one["class_path"].rpartition(".")[2] for one in listed]
    return {
        f"{name}[{names[: place + 1].count(name)}]" if names.count(name) > 1 else name: one
        for place, (name, one) in enumerate(zip(names, listed, strict=True))
    }


def _config_at_wandb(run: str) -> dict[str, Any]:
    import wandb

    try:
        return dict(wandb.Api().run(run).config)
    except (wandb.errors.CommError, wandb.errors.UsageError, ValueError) as error:
        raise FileNotFoundError(
            f"{run} is no run folder here, and Weights & Biases does not give it: {error}; see `wandb login`"
        ) from error
