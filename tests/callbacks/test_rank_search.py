"""RankSearch: its stop rule, masks, budgets, files, resume and two processes."""

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import peft
import pytest
import torch
import yaml
from tiny import TINY_CONFIGS, config_of, fit_adapter
from two_ranks import fit_on_two_ranks

from callbacks import RankSearch
from callbacks.rank_search import best_trial
from lightning_modules import load_run
from pocketgan.adapters import ranks_of

SEARCH = (
    "--trainer.callbacks+=RankSearch",
    "--trainer.callbacks.factors=[1,2,4]",
    "--data.concepts=[sepia]",
    "--budget.images=96",
)


def searched(trained, run, *arguments):
    return fit_adapter(trained["pairs"], trained["base"], run, *SEARCH, *arguments)


def trace_of(run):
    return json.loads((run / "rank_search.json").read_text())


@pytest.fixture(scope="module")
def found(trained, tmp_path_factory):
    """A run whose search accepts any improvement."""
    return searched(
        trained,
        tmp_path_factory.mktemp("found") / "run",
        "--trainer.callbacks.tolerance=0",
        "--trainer.callbacks.metric=val/ssim",
        "--trainer.callbacks.mode=max",
    )


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([], "min", (0, False)),
        ([0.5], "min", (0, False)),
        ([0.5, 0.4], "min", (1, False)),
        ([0.5, 0.4, 0.395], "min", (1, True)),
        ([0.5, 0.495], "min", (0, True)),
        ([0.5, 0.6], "min", (0, True)),
        ([0.5, 0.6], "max", (1, False)),
        ([0.02, -0.05], "min", (1, False)),  # a kernel distance may pass through 0
        ([0.5, math.nan], "min", (0, True)),
        ([math.nan, 0.5], "min", (1, False)),
        ([math.nan, math.nan], "min", (0, True)),
    ],
)
def test_the_next_factor_must_improve_by_more_than_the_tolerance(values, mode, expected):
    assert best_trial(values, base=1.0, tolerance=0.01, mode=mode) == expected


def test_trace_holds_each_trial_on_the_same_images(found):
    base, *trials = trace_of(found)
    assert base["factor"] == 0
    assert [row["factor"] for row in trials] == [1, 2, 4][: len(trials)]
    assert {row["images"] for row in trials} == {8}
    assert sum(row["images"] for row in trials) <= 96 / 4
    for row, last in zip(trials[1:], trials, strict=False):
        assert row["parameters"] > last["parameters"]
        assert row["bytes"] > last["bytes"]
        assert all(row["ranks"][name] <= 2 * rank for name, rank in last["ranks"].items())
    assert {"val/reconstruction", "val/kid_lite0", "val/ssim"} <= trials[0]["figures"].keys()
    logged = (found / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"rank_search/factor", "rank_search/bytes", "rank_search/val/ssim"} <= set(logged)


def test_a_trial_is_a_plain_fine_tune_of_those_ranks(trained, found, tmp_path):
    """The masked trial of factor 1 scores as an ordinary run does that has these ranks alone."""
    trials = trace_of(found)
    ranks = tmp_path / "ranks.yaml"
    ranks.write_text(yaml.safe_dump(trials[1]["ranks"]))
    run = fit_adapter(
        trained["pairs"], trained["base"], tmp_path / "run", "--data.concepts=[sepia]", f"--model.ranks={ranks}",
        "--budget.images=8", "--trainer.val_check_interval=2",
    )  # fmt: skip
    assert ranks_of(load_run(run).generator) == trials[1]["ranks"]
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    value = next(
        row[rows[0].index("val/reconstruction")] for row in rows[1:] if row[rows[0].index("val/reconstruction")]
    )
    # A of the larger allocation starts at other random values
    assert trials[1]["figures"]["val/reconstruction"] == pytest.approx(float(value), rel=0.05)


def test_files_of_the_best_trial(found):
    trials = trace_of(found)
    ranks = yaml.safe_load((found / "ranks.yaml").read_text())
    values = [row["figures"]["val/ssim"] for row in trials]
    best, _ = best_trial(values[1:], values[0], 0.0, "max")
    assert ranks == trials[1 + best]["ranks"]
    assert json.loads((found / "adapter" / "adapter_config.json").read_text())["rank_pattern"] == ranks
    assert (found / "adapter" / "adapter_model.safetensors").stat().st_size == trials[1 + best]["bytes"]


@pytest.fixture(scope="module")
def masked(trained, tmp_path_factory):
    """A run that keeps factor 1 with larger ranks allocated: nothing improves by twice the base's own figure."""
    return searched(trained, tmp_path_factory.mktemp("masked") / "run", "--trainer.callbacks.tolerance=2")


def test_stored_adapter_gives_the_run_s_own_output(trained, masked):
    """What lies beyond the found ranks was masked, so that cutting it off changes nothing."""
    stored, used = assert_stored_as_used(trained, masked)
    assert sum(map(torch.numel, stored.parameters())) < sum(map(torch.numel, used.parameters()))


def assert_stored_as_used(trained, run):
    photo = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = load_run(run)
    tokens = model.text_encoder_ema(["sepia"], [""])
    stored = peft.PeftModel.from_pretrained(load_run(trained["base"]).generator_ema, run / "adapter")
    with torch.no_grad():  # products of other widths round otherwise
        torch.testing.assert_close(stored(photo, tokens), model(photo, ["sepia", "sepia"]), atol=1e-5, rtol=0)
    return stored, model.generator_ema


def test_a_finished_search_resumes(trained, masked, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(masked, run)
    trace = (run / "rank_search.json").read_text()
    searched(trained, run, "--trainer.callbacks.tolerance=2", "--budget.images=120", "--ckpt_path=last")
    assert (run / "rank_search.json").read_text() == trace
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["images_seen"] == 120
    assert checkpoint["ranks"] == json.loads(trace)[1]["ranks"]
    assert checkpoint["allocated_ranks"] != checkpoint["ranks"]
    for name, rank in checkpoint["ranks"].items():
        deltas = checkpoint["state_dict"][f"generator.base_model.model.{name}.lora_A.default.weight"]
        assert not deltas[rank:].any()


def test_the_first_factor_is_kept_where_none_improves(trained, tmp_path, capsys):
    run = searched(trained, tmp_path / "run", "--trainer.callbacks.tolerance=2")
    said = capsys.readouterr().out
    assert "no factor above 1 improves val/reconstruction by more than 2 of the base's figure" in said
    assert "keeps factor 1 after 16 images" in said
    assert len(trace_of(run)) == 3  # the base, factor 1, and factor 2 that ended the search
    assert yaml.safe_load((run / "ranks.yaml").read_text()) == trace_of(run)[1]["ranks"]
    model = load_run(run)
    allocated, kept = ranks_of(model.generator), model.ranks
    assert any(allocated[name] > rank for name, rank in kept.items())
    for network in (model.generator, model.generator_ema):
        for name, rank in kept.items():
            layer = network.get_base_model().get_submodule(name)
            assert not layer.lora_A["default"].weight[rank:].any()
            assert not layer.lora_B["default"].weight[:, rank:].any()
            assert layer.lora_B["default"].weight[:, :rank].any()


def test_ranks_are_reusable(trained, found, tmp_path):
    run = fit_adapter(
        trained["pairs"],
        trained["base"],
        tmp_path / "run",
        "--data.concepts=[sepia]",
        f"--model.ranks={found}/ranks.yaml",
    )
    assert ranks_of(load_run(run).generator) == yaml.safe_load((found / "ranks.yaml").read_text())
    assert config_of(run)["model"]["init_args"]["ranks"] == str(found / "ranks.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("up.9: 4\n", "does not fit the base .* ranks names up.9"),
        ("- 1\n", "holds no ranks"),
        ("up: a\n", "holds no ranks"),
    ],
)
def test_rank_file_of_another_architecture_is_refused(trained, tmp_path, text, message):
    (tmp_path / "ranks.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        fit_adapter(
            trained["pairs"], trained["base"], tmp_path / "run", "--data.concepts=[sepia]", "--model.ranks=ranks.yaml"
        )


def test_unknown_metric_is_refused_before_training(trained, tmp_path):
    with pytest.raises(ValueError, match=r"metric val/fid is not logged; this run logs .*val/kid_lite0"):
        searched(trained, tmp_path / "run", "--trainer.callbacks.metric=val/fid")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_byte_budget_leaves_out_large_factors(trained, found, tmp_path):
    budget = trace_of(found)[1]["bytes"]
    run = searched(trained, tmp_path / "run", f"--trainer.callbacks.byte_budget={budget}")
    assert [row["factor"] for row in trace_of(run)] == [0, 1]
    with pytest.raises(ValueError, match=f"factor 1 takes {budget} bytes, above the budget of {budget - 1}"):
        searched(trained, tmp_path / "none", f"--trainer.callbacks.byte_budget={budget - 1}")


def test_latency_budget_leaves_out_slow_factors(trained, tmp_path, monkeypatch):
    measured = iter((3.0, 9.0, 12.0))
    monkeypatch.setattr(
        "callbacks.rank_search.measure_latency",
        lambda model, size, threads: (
            model(torch.zeros(1, 3, size, size)),
            type("L", (), {"median_ms": next(measured)}),
        )[1],
    )
    run = searched(trained, tmp_path / "run", "--trainer.callbacks.latency_budget_ms=5")
    assert [row["factor"] for row in trace_of(run)] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": (2, 1)}, "ascending"),
        ({"factors": ()}, "ascending"),
        ({"images_share": 0.5}, "up to 0.25"),
        ({"tolerance": -1}, "give 0 or more"),
        ({"metric": "val/ssim"}, "set mode to max"),
    ],
)
def test_senseless_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankSearch(**arguments)


def test_too_small_a_budget_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match=r"0.25 of 32 images is less than a batch of 4 for each of 3 factors"):
        searched(trained, tmp_path / "run", "--budget.images=32")


@pytest.mark.extended
def test_a_run_that_began_without_search_is_refused(trained, tmp_path):
    run = fit_adapter(trained["pairs"], trained["base"], tmp_path / "run", "--data.concepts=[sepia]")
    with pytest.raises(ValueError, match="has seen 24 images without a rank search"):
        searched(trained, run, "--ckpt_path=last")


def comparable(trace):
    rows = copy.deepcopy(trace)
    for row in rows:
        del row["seconds"]
    return rows


@pytest.mark.extended
def test_killed_search_goes_on_with_the_next_trial(trained, tmp_path):
    whole = searched(trained, tmp_path / "whole", "--trainer.callbacks.tolerance=0")
    run = tmp_path / "killed"
    words = command(trained, run, "--trainer.callbacks.tolerance=0")
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "from callbacks import RankSearch\n"
        "from pocketgan.cli import main\n"
        "trial = RankSearch._trial\n"
        "def killed(self, trainer, module, factor, ranks):\n"
        "    row = trial(self, trainer, module, factor, ranks)\n"
        "    if factor == 2:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return row\n"
        "RankSearch._trial = killed\n"
        "main(sys.argv[1:])\n"
    )
    killed = subprocess.run([sys.executable, script, *words], check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert [row["factor"] for row in trace_of(run)] == [0, 1]
    assert_at_the_start(trained, run)
    assert (run / "metrics.csv").read_text().count("\n") == 3  # the names, the base, factor 1
    without = tmp_path / "without"
    shutil.copytree(run, without)
    with pytest.raises(ValueError, match=r"begun with metric val/reconstruction and would go on with val/ssim"):
        searched(
            trained, run, "--trainer.callbacks.metric=val/ssim", "--trainer.callbacks.mode=max", "--ckpt_path=last"
        )
    with pytest.raises(ValueError, match=r"begun with trial_images 8 and would go on with 16"):
        searched(trained, run, "--budget.images=192", "--ckpt_path=last")
    first = trace_of(run)[1]
    searched(trained, run, "--trainer.callbacks.tolerance=0", "--ckpt_path=last")
    assert trace_of(run)[1] == first  # not done again: the very seconds are the same
    assert comparable(trace_of(run)) == comparable(trace_of(whole))
    ends = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, run)]
    assert ends[0]["ranks"] == ends[1]["ranks"]
    assert all(torch.equal(ends[1]["state_dict"][name], value) for name, value in ends[0]["state_dict"].items())
    with pytest.warns(UserWarning, match="RankSearch"):
        fit_adapter(trained["pairs"], trained["base"], without, "--data.concepts=[sepia]", "--ckpt_path=last")
    assert_stored_as_used(trained, without)


@pytest.mark.extended
def test_a_search_that_is_called_away_goes_on_with_the_trial_it_was_in(trained, tmp_path, monkeypatch, capsys):
    whole = searched(trained, tmp_path / "whole", "--trainer.callbacks.tolerance=0")
    run, called = tmp_path / "run", []
    trial = RankSearch._trial

    def called_away(self, trainer, module, factor, ranks):
        if factor == 2:
            called.append(factor)
            os.kill(os.getpid(), signal.SIGUSR1)
        return trial(self, trainer, module, factor, ranks)

    with monkeypatch.context() as patch:
        patch.setattr(RankSearch, "_trial", called_away)
        with pytest.raises(SystemExit) as left:
            searched(trained, run, "--trainer.callbacks.tolerance=0")
    assert left.value.code == os.EX_TEMPFAIL
    assert "SIGUSR1 in the trial of factor 2, which begins anew; start it again with" in capsys.readouterr().out
    assert [row["factor"] for row in trace_of(run)] == [0, 1]
    searched(trained, run, "--trainer.callbacks.tolerance=0", "--ckpt_path=last")
    assert called == [2]
    assert comparable(trace_of(run)) == comparable(trace_of(whole))
    ends = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, run)]
    assert all(torch.equal(ends[1]["state_dict"][name], value) for name, value in ends[0]["state_dict"].items())


def assert_at_the_start(trained, run):
    """Between two trials a search's checkpoint holds the base with deltas of nothing, and optimizers at rest."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    base = load_run(trained["base"]).generator_ema.state_dict()
    found = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("generator.")}
    for name, value in found.items():
        plain = (
            name.removeprefix("generator.base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        )
        plain = plain.replace(".modules_to_save.default", "")
        if "lora_B" in plain:
            assert not value.any()
        elif "lora_A" not in plain:
            assert torch.equal(value, base[plain]), name
    assert checkpoint["images_seen"] == 0
    assert not any(state["state"] for state in checkpoint["optimizer_states"])


def command(trained, run, *arguments):
    return [
        "fit",
        f"-c={TINY_CONFIGS / 'lora_adaptation' / 'e2gan.yaml'}",
        f"--data.root={trained['pairs']}",
        f"--model.base={trained['base']}",
        f"--trainer.default_root_dir={run}",
        *SEARCH,
        *arguments,
    ]


@pytest.mark.extended
def test_two_processes_find_the_ranks_of_one_and_end_equal(trained, tmp_path):
    # Adam's first steps are signs, which turn rounding into differences of the size of the learning rate
    sgd = '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}'
    # with this seed factor 2 is clearly better than 1, and 4 no better
    options = ("--seed_everything=3", f"--model.generator_optimizer={sgd}", f"--model.discriminator_optimizer={sgd}")
    one = searched(trained, tmp_path / "one", *options)
    assert yaml.safe_load((one / "ranks.yaml").read_text()) == trace_of(one)[2]["ranks"]  # of factor 2
    two = tmp_path / "two"
    ranks = fit_on_two_ranks(
        tmp_path,
        command(trained, two, *options),
        "(model.ranks, model.state_dict())",
        strategy="ddp_find_unused_parameters_true",
    )
    assert ranks[0][0] == ranks[1][0] == yaml.safe_load((one / "ranks.yaml").read_text())
    assert all(torch.equal(ranks[1][1][name], value) for name, value in ranks[0][1].items())
    for row, single in zip(trace_of(two), trace_of(one), strict=True):
        assert row["factor"] == single["factor"]
        assert row["figures"]["val/reconstruction"] == pytest.approx(single["figures"]["val/reconstruction"], rel=1e-5)
