"""Full fine-tuning: where it starts and what it trains."""

import pytest
import torch
from tiny import TINY_CONFIGS, real_photos

from lightning_modules import FullFineTuning, load_run
from pocketgan.cli import main
from pocketgan.losses import L1Loss, LeastSquaresLoss
from pocketgan.metrics import EditQuality


def fine_tune(trained, run, *arguments):
    main(
        [
            "fit",
            f"-c={TINY_CONFIGS / 'full_fine_tuning' / 'e2gan.yaml'}",
            f"--data.root={trained['pairs']}",
            f"--model.base={trained['base']}",
            f"--trainer.default_root_dir={run}",
            *arguments,
        ]
    )
    return run


def test_it_starts_at_the_base_s_averages(trained):
    model = FullFineTuning(
        trained["base"],
        adversarial_loss=LeastSquaresLoss(),
        reconstruction_loss=L1Loss(),
        quality=EditQuality(),
        generator_optimizer=torch.optim.Adam,
        discriminator_optimizer=torch.optim.Adam,
    )
    base = load_run(trained["base"])
    for found in (model.generator, model.generator_ema):
        for name, value in base.generator_ema.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name
    assert all(
        torch.equal(value, base.discriminator.state_dict()[name])
        for name, value in model.discriminator.state_dict().items()
    )
    assert all(parameter.requires_grad for parameter in model.generator.parameters())
    assert model.generator.training
    photo, tokens = real_photos(1, 32)[0][None], torch.randn(1, 2, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.generator_ema(photo, tokens), base.generator_ema(photo, tokens))


def test_every_weight_trains_and_the_base_s_own_tokens_stay(trained, tmp_path):
    run = fine_tune(trained, tmp_path / "run", "--data.concepts=[sepia]")
    model, base = load_run(run), load_run(trained["base"])
    for name, value in base.generator_ema.state_dict().items():
        assert not torch.equal(model.generator.state_dict()[name], value), name
    tokens, known = model.text_encoder.tokens, base.text_encoder_ema.tokens
    assert set(known) < set(tokens)
    assert all(torch.equal(tokens[name], value) for name, value in known.items())
    assert not torch.equal(tokens["concept_sepia"], torch.stack(list(known.values())).mean(0))
    assert model.concepts == ["sepia"]


def test_a_concept_that_the_base_knows_is_named(trained, tmp_path):
    with pytest.warns(UserWarning, match="the base was trained on inverted already"):
        fine_tune(trained, tmp_path / "run", "--data.concepts=[inverted]", "--budget.images=4")


def test_an_adapter_is_no_base(trained, tmp_path):
    with pytest.raises(ValueError, match="holds an adapter; give its base instead"):
        fine_tune(trained, tmp_path / "run", f"--model.base={trained['adapter']}", "--data.concepts=[sepia]")
