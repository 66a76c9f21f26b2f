"""The README's five-minute paths, walked in their order with their own words, in a copy of configs/ made small."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pocketgan.cli import main

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[1]
# what makes a config small, for each of its keys that there are
SMALL = {
    "data.init_args.limit": 12,
    "data.init_args.size": 32,
    "model.init_args.size": 32,
    "model.init_args.teacher.init_args.size": 128,
    "model.init_args.generator.init_args.width": 8,
    "model.init_args.discriminator.init_args.width": 8,
    "budget.images": 32,
    "trainer.val_check_interval": 4,
    "trainer.log_every_n_steps": 1,
    "trainer.precision": "32-true",
}
SBATCH = """#!{python}
import os, re, subprocess, sys
words = sys.argv[1:]
given = [words.pop(0) for _ in range(next(place for place, word in enumerate(words) if not word.startswith("--")))]
said = re.findall(r"^#SBATCH (--.*?)$", open(words[0]).read(), flags=re.M)
options = dict(word.split("=", 1) if "=" in word else (word, "") for word in (*said, *given))
first, last = re.match(r"(\\d+)-(\\d+)", options.get("--array", "1-1")).groups()
tasks = options.get("--ntasks-per-node", options.get("--ntasks", "1"))
for task in range(int(first), int(last) + 1):
    job = {{
        "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS": tasks, "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_JOB_NODELIST": "localhost", "SLURM_NODEID": "0", "SLURM_JOB_NAME": options["--job-name"],
    }}
    if "--array" in options:
        job |= {{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}}
    subprocess.run(["bash", *words], env=os.environ | job, check=True)
"""
SRUN = """#!{python}
import os, subprocess, sys
ranks = range(int(os.environ["SLURM_NTASKS"]))
tasks = [
    subprocess.Popen(sys.argv[1:], env=os.environ | {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in ranks
]
sys.exit(max(task.wait() for task in tasks))
"""


def path(heading):
    """The lines of a path, those that go on joined."""
    text = re.search(rf"### {heading}\n```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return text[1].replace("\\\n", " ").splitlines()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small repository, and a SLURM and a `wandb` that do as told; folder and environment."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for file in (folder / "configs").rglob("*.yaml"):
        if file.parent.name in {"sweeps", "prompts"}:
            continue
        config = yaml.safe_load(file.read_text())
        for key, value in SMALL.items():
            *parents, last = key.split(".")
            place = config
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if isinstance(place, dict) and last in place and "${" not in str(place[last]):
                place[last] = value
        if "early_stopping" in config:
            config["early_stopping"]["init_args"] |= {"every_n_batches": 1, "window": 2}
        file.write_text(yaml.safe_dump(config, sort_keys=False))
    programs = folder / "bin"
    programs.mkdir()
    for name, script in {
        "sbatch": SBATCH.format(python=sys.executable),
        "srun": SRUN.format(python=sys.executable),
        "wandb": f'#!/bin/bash\necho "wandb $@" >> {folder / "asked.txt"}\n',
        "pocketgan": f'#!/bin/bash\nexec {sys.executable} -m pocketgan "$@"\n',
    }.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # a new shell knows nothing of the service that other tests' wandb has started, and may have ended
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return folder, inherited | variables


@pytest.fixture(scope="module")
def walked(world):
    """The first path; the others go on from what it leaves."""
    folder, variables = world
    printed = walk("One GPU, or none", world)
    return folder, variables, printed


def walk(heading, world):
    folder, variables, *_ = world
    lines = "set -euo pipefail\n" + "\n".join(path(heading))
    done = subprocess.run(
        ["bash", "-c", lines], cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_gpu(walked):
    folder, _, printed = walked
    assert "parameters" in printed
    assert (folder / "runs" / "base" / "checkpoints" / "last.ckpt").is_file()
    assert list((folder / "runs" / "base" / "wandb").glob("offline-run-*"))
    assert "data:image/png;base64," in (folder / "report.html").read_text()


def test_a_sweep_without_an_account(walked):
    folder, *_ = walked
    printed = walk("A sweep without an account", walked)
    assert "base_gan.yaml: best first" in printed
    out = folder / "runs" / "sweeps" / "base_gan"
    assert len((out / "trials.csv").read_text().splitlines()) == 3
    assert (out / "trials.png").is_file()


def test_the_same_sweep_with_an_account(walked, monkeypatch, capsys):
    """The service is stood in for: it keeps the file, and its agent runs the command as W&B's does."""
    folder, variables, _ = walked
    login, sweep, agent = path("The same sweep with an account")
    assert login == "wandb login"
    monkeypatch.chdir(folder)
    kept = {}

    def run_agent(words, check):
        arguments = [
            f"--{name}={given['values'][0] if 'values' in given else given['min']}"
            for name, given in kept["sweep"]["parameters"].items()
        ]
        command = []
        for word in kept["sweep"]["command"]:
            command += {"${env}": ["/usr/bin/env"], "${args}": arguments}.get(word, [word])
        given = {"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "first"}
        return REAL_RUN(command, env=variables | given, check=True, timeout=200)

    monkeypatch.setattr("wandb.login", lambda **_: True)
    monkeypatch.setattr("wandb.sweep", lambda raw, **_: kept.update(sweep=raw) or "ID")
    monkeypatch.setattr("pocketgan.wandb_sweep.subprocess.run", run_agent)
    main([*shlex.split(sweep)[1:], "--entity=TEAM"])
    assert agent in capsys.readouterr().out
    run = folder / "runs" / "sweeps" / "base_gan" / "first"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((run / "wandb.json").read_text())["id"] == "first"


REAL_RUN = subprocess.run


def test_a_slurm_cluster(walked):
    folder, *_ = walked
    walk("A SLURM cluster", walked)
    config = yaml.safe_load((folder / "runs" / "on_two_gpus" / "config.yaml").read_text())
    assert (int(config["trainer"]["devices"]), config["data"]["init_args"]["batch_size"]) == (2, 16)
    assert (folder / "runs" / "on_two_gpus" / "checkpoints" / "last.ckpt").is_file()
    assert list((folder / "runs" / "adapters" / "style_04").glob("adapter/*.safetensors"))
    assert (folder / "asked.txt").read_text() == 4 * "wandb agent --count 1 TEAM/pocketgan/ID\n"
