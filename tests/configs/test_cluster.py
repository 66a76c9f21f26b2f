"""Jobs for SLURM, run by a SLURM of our own: its variables, its signal, `srun` and `scontrol` that do as told."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import assert_same, state, weights
from tiny import CONFIGS, TINY_CONFIGS
from two_ranks import fit_on_two_ranks

pytestmark = pytest.mark.extended

CLUSTER = CONFIGS / "cluster"
JOBS = sorted(file for file in CLUSTER.iterdir() if file.suffix in {".sbatch", ".sh"})


@pytest.fixture
def slurm(tmp_path):
    """Environment of a job with one task."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": 'exec "$@"',
        "scontrol": f'echo "$@" >> {tmp_path / "asked.txt"}',
        "pocketgan": f'exec {sys.executable} -m pocketgan "$@"',
        "wandb": f'echo "wandb $@" >> {tmp_path / "asked.txt"}',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    variables = {
        "SLURM_JOB_ID": "123", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "pocketgan",
        "SLURM_JOB_NODELIST": "localhost", "PATH": f"{folder}:{os.environ['PATH']}",
    }  # fmt: skip
    return os.environ | variables


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_jobs_are_bash_that_says_how_to_submit_it(job):
    subprocess.run(["bash", "-n", job], check=True)
    text = job.read_text()
    assert f"configs/cluster/{job.name}" in text
    assert "set -euo pipefail" in text


def test_a_preempted_job_is_queued_again_and_goes_on_at_the_very_image(pair_set, tmp_path, slurm):
    words = [
        "bash", str(CLUSTER / "fit.sbatch"), "-c", str(TINY_CONFIGS / "base_gan" / "e2gan.yaml"),
        f"--data.root={pair_set}", f"--trainer.default_root_dir={tmp_path / 'run'}", "--budget.images=4000",
    ]  # fmt: skip
    figures = tmp_path / "run" / "metrics.csv"
    with subprocess.Popen(words, env=slurm) as job:
        end = time.monotonic() + 120
        while not figures.exists() and job.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        # srun hands the signal on to its tasks; here they are all that listens in the job's process
        children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=False).stdout
        for process in children.split() or [job.pid]:
            os.kill(int(process), signal.SIGUSR1)
        assert job.wait(120) == 0
    assert (tmp_path / "asked.txt").read_text() == "requeue 123\n"
    seen = weights(tmp_path / "run")["images_seen"]
    assert 0 < seen < 4000
    more = f"--budget.images={seen + 12}"
    subprocess.run([*words, more], env=slurm, check=True, timeout=120)
    whole = f"--trainer.default_root_dir={tmp_path / 'whole'}"
    subprocess.run([*words, more, whole], env=slurm, check=True, timeout=120)
    assert_same(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_torchrun_on_two_nodes_saves_on_a_signal_and_goes_on(pair_set, tmp_path):
    """Two agents of torchrun stand for two nodes; called away, both processes leave and are started anew."""
    words = [
        "-c", str(TINY_CONFIGS / "base_gan" / "e2gan.yaml"), f"--data.root={pair_set}",
        "--trainer.val_check_interval=500", "--trainer.log_every_n_steps=5",
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = os.environ | {
        "NODES": "2", "GPUS": "1", "HEAD": f"localhost:{port}", "RESTARTS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    run, budget = tmp_path / "run", "--budget.images=600"
    script = [str(CLUSTER / "torchrun.sh"), *words, budget, f"--trainer.default_root_dir={run}"]
    with open(tmp_path / "log.txt", "w") as log:  # noqa: PTH123
        nodes = [subprocess.Popen(script, env=variables, stdout=log, stderr=log) for _ in range(2)]
        end = time.monotonic() + 200
        while not (run / "metrics.csv").exists() and nodes[0].poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        nodes[1].send_signal(signal.SIGUSR1)
        assert [node.wait(200) for node in nodes] == [0, 0]
    told = (tmp_path / "log.txt").read_text()
    assert "last.ckpt is written; start it again with --ckpt_path last" in told
    assert weights(run)["images_seen"] == 600
    (whole, _), _ = fit_on_two_ranks(
        tmp_path, ["fit", *words, budget, f"--trainer.default_root_dir={tmp_path / 'whole'}"],
        "(model.state_dict(), model.images_seen)", strategy="ddp_find_unused_parameters_true",
    )  # fmt: skip
    assert_same(weights(run)["state_dict"], whole)


def test_a_task_of_an_array_adapts_its_concept(trained, tmp_path, slurm):
    (tmp_path / "concepts.txt").write_text("# chosen\nother\nsepia\n")
    words = [
        "bash", str(CLUSTER / "campaign.sbatch"), str(tmp_path / "concepts.txt"), "--base", str(trained["base"]),
        "--pairs", str(trained["pairs"]), "--config", str(TINY_CONFIGS / "lora_adaptation" / "e2gan.yaml"),
        f"--out={tmp_path / 'adapters'}",
    ]  # fmt: skip
    subprocess.run(words, env=slurm | {"SLURM_ARRAY_TASK_ID": "2"}, check=True, timeout=200)
    assert (tmp_path / "adapters" / "sepia" / "adapter").is_dir()
    missing = subprocess.run(words, env=slurm | {"SLURM_ARRAY_TASK_ID": "3"}, capture_output=True, check=False)
    assert missing.returncode == 1
    assert b"has no concept number 3" in missing.stderr


def test_an_agent_makes_one_run(tmp_path, slurm):
    subprocess.run(["bash", CLUSTER / "sweep_agent.sbatch", "team/pocketgan/abc"], env=slurm, check=True)
    assert (tmp_path / "asked.txt").read_text() == "wandb agent --count 1 team/pocketgan/abc\n"
