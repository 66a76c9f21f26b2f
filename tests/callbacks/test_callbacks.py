"""Image budget, random state, run folder and adapter writer."""

import csv
from types import SimpleNamespace

import pytest
import torch
from tiny import fit_adapter, fit_base

from callbacks import ImageBudget, MetricsCSV, RandomState


def test_budget_stops_at_the_batch_that_reaches_it():
    budget, trainer = ImageBudget(images=10), SimpleNamespace(should_stop=False)
    for seen, stopped in ((9, False), (10, True)):
        budget.on_train_batch_end(trainer, SimpleNamespace(images_seen=seen), None, None, 0)
        assert trainer.should_stop is stopped
    trainer.should_stop = False
    budget.on_train_start(trainer, SimpleNamespace(images_seen=12))
    assert trainer.should_stop


def test_budget_needs_an_image():
    with pytest.raises(ValueError, match="budget of 0 images"):
        ImageBudget(0)


def test_a_finished_run_trains_no_further(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=8", "--trainer.val_check_interval=2")
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    fit_base(pair_set, run, "--budget.images=8", "--trainer.val_check_interval=2", "--ckpt_path=last")
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_killed_run_logs_nothing_twice(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=12", "--trainer.log_every_n_steps=1")
    file = run / "metrics.csv"
    names, *rows = file.read_text().splitlines()
    seen = names.split(",").index("images")
    cells = rows[-1].split(",")
    cells[seen] = "16.0"  # of a batch after the checkpoint
    file.write_text("\n".join((names, *rows, ",".join(cells), "half a li")) + "\n")
    fit_base(pair_set, run, "--budget.images=24", "--trainer.log_every_n_steps=1", "--ckpt_path=last")
    whole = fit_base(pair_set, tmp_path / "whole", "--budget.images=24", "--trainer.log_every_n_steps=1")
    images = [
        [row["images"] for row in csv.DictReader(text.splitlines())]
        for text in (file.read_text(), (whole / "metrics.csv").read_text())
    ]
    # a run that ends at 12 images validates there too, as one that goes on does
    assert images[0] == images[1]


def test_random_state_goes_on():
    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=lambda state: state)
    trainer = SimpleNamespace(strategy=strategy, world_size=1, global_rank=0)
    checkpoint = {}
    torch.manual_seed(5)
    torch.rand(3)
    RandomState().on_save_checkpoint(trainer, None, checkpoint)
    expected = torch.rand(4)
    torch.manual_seed(1)
    resumed = RandomState()
    resumed.on_load_checkpoint(trainer, None, checkpoint)
    resumed.on_train_start(trainer, None)
    assert torch.equal(torch.rand(4), expected)


def test_each_rank_takes_its_own_random_state_back():
    """torch's set_rng_state reads a view of a larger tensor from the wrong place."""
    states = torch.stack([torch.Generator().manual_seed(seed).get_state() for seed in range(3)])
    resumed = RandomState()
    for rank, state in enumerate(states.clone()):
        trainer = SimpleNamespace(world_size=3, global_rank=rank)
        resumed.on_load_checkpoint(trainer, None, {"random_states": states})
        resumed.on_train_start(trainer, None)
        assert torch.equal(torch.get_rng_state(), state)


def test_random_state_of_another_number_of_ranks_is_left():
    resumed = RandomState()
    trainer = SimpleNamespace(world_size=2, global_rank=0)
    resumed.on_load_checkpoint(trainer, None, {"random_states": torch.zeros(1, 5056, dtype=torch.uint8)})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.warns(
        UserWarning, match="this run was on 1 ranks and goes on on 2: batches and schedules are the same"
    ):
        resumed.on_train_start(trainer, None)
    assert torch.equal(torch.rand(2), expected)


def test_metrics_of_a_resumed_run_are_kept(tmp_path):
    for value in (1.0, 2.0):
        logger = MetricsCSV(tmp_path)
        logger.log_metrics({"train/reconstruction": value}, step=int(value))
        if value > 1:
            logger.log_metrics({"val/reconstruction": 9.0}, step=3)
        logger.save()
    rows = (tmp_path / "metrics.csv").read_text().split()
    assert rows == ["step,train/reconstruction,val/reconstruction", "1,1.0,", "2,2.0,", "3,,9.0"]


def test_resumed_run_keeps_its_curve(pair_set, tmp_path):
    run = fit_base(pair_set, tmp_path / "run", "--budget.images=8", "--trainer.val_check_interval=1")
    first = (run / "metrics.csv").read_text().splitlines()
    fit_base(pair_set, run, "--budget.images=16", "--trainer.val_check_interval=1", "--ckpt_path=last")
    assert (run / "metrics.csv").read_text().splitlines()[: len(first)] == first


def test_adapter_writer_refuses_a_base(pair_set, tmp_path):
    with pytest.raises(TypeError, match="AdapterWriter serves LoRAAdaptation, this run trains a BaseGAN"):
        fit_base(pair_set, tmp_path / "run", "--trainer.callbacks=AdapterWriter")


def test_a_yamls_progress_bar_can_be_turned_off(pair_set, tmp_path, capsys):
    bar = "--trainer.callbacks=[lightning.pytorch.callbacks.RichProgressBar]"
    fit_base(pair_set, tmp_path / "run", bar, "--trainer.enable_progress_bar=false", "--budget.images=4")
    assert "Epoch" not in capsys.readouterr().out


def test_adapter_appears_during_training(trained, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("callbacks.adapter_writer.save_adapter", lambda *arguments: written.append(arguments[2]))
    run = fit_adapter(trained["pairs"], trained["base"], tmp_path / "run", "--data.concepts=[sepia]")
    assert written == [run / "adapter"] * len(written)
    assert len(written) >= 2
