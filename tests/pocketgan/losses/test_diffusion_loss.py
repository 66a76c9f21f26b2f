"""The diffusion loss and its weights against closed forms."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from pocketgan.losses import DiffusionLoss, MinSNRWeighting, SNRWeighting, UniformWeighting

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler(prediction_type="epsilon", **options):
    return DDPMScheduler(prediction_type=prediction_type, **{**STABLE_DIFFUSION, **options})


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("sample", [1.0, 0.5, 4.0, 5.0, 5.0]),
        ("epsilon", [1.0, 1.0, 1.0, 1.0, 0.1]),
        ("v_prediction", [1.0, 1 / 3, 0.8, 5 / 6, 5 / 51]),
    ],
)
def test_min_snr_by_hand(prediction_type, expected):
    snr = torch.tensor([0.0, 0.5, 4.0, 5.0, 50.0])
    torch.testing.assert_close(MinSNRWeighting()(snr, prediction_type), torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_three_predictions_are_weighted_as_one_loss():
    snr = torch.logspace(-4, 4, 50)
    weigh = MinSNRWeighting()
    of_sample, of_noise, of_velocity = (weigh(snr, kind) for kind in ("sample", "epsilon", "v_prediction"))
    torch.testing.assert_close(of_noise * snr, of_sample)
    torch.testing.assert_close(of_velocity, of_noise * snr / (snr + 1))


def test_it_lowers_the_weight_of_stable_diffusions_147_cleanest_timesteps():
    weights = MinSNRWeighting()(compute_snr(scheduler(), torch.arange(1000)), "epsilon")
    assert (weights < 1).nonzero().squeeze().tolist() == list(range(147))
    assert weights.mean().item() == pytest.approx(0.917, abs=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("weighting", [MinSNRWeighting(), UniformWeighting()])
def test_no_signal_at_all_gives_no_nan(prediction_type, weighting):
    zero_terminal = scheduler(prediction_type, rescale_betas_zero_snr=True)
    timesteps = torch.tensor([999])
    assert compute_snr(zero_terminal, timesteps).item() == 0
    clean, noise, prediction = torch.randn(3, 1, 4, 2, 2)
    assert torch.isfinite(DiffusionLoss(weighting)(prediction, clean, noise, timesteps, zero_terminal)).all()


@pytest.mark.parametrize("weighting", SNRWeighting.__subclasses__())
def test_the_right_prediction_costs_nothing(weighting):
    clean, noise = torch.randn(2, 3, 4, 2, 2)
    timesteps = torch.tensor([0, 500, 999])
    loss = DiffusionLoss(weighting())
    velocity = scheduler().get_velocity(clean, noise, timesteps)
    for prediction_type, target in (("epsilon", noise), ("sample", clean), ("v_prediction", velocity)):
        zero = loss(target, clean, noise, timesteps, scheduler(prediction_type))
        assert zero.shape == (3,)
        assert not zero.any()
        assert loss(target + 1, clean, noise, timesteps, scheduler(prediction_type)).min() > 0


def test_values_by_hand():
    clean, noise = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    prediction = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    timesteps = torch.tensor([0, 0])
    loss = DiffusionLoss()
    assert loss(prediction, clean, noise, timesteps, scheduler()).tolist() == [1.0, 1.0]
    mask = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]).expand(2, 1, 2, 2)
    assert loss(prediction, clean, noise, timesteps, scheduler(), mask).tolist() == [2.0, 1.0]
    weight = MinSNRWeighting()(compute_snr(scheduler(), timesteps[:1]), "epsilon").item()
    weighted = DiffusionLoss(MinSNRWeighting())(prediction, clean, noise, timesteps, scheduler())
    assert weighted.tolist() == pytest.approx([weight, weight])


def test_predicted_variances_are_left_aside():
    clean, noise = torch.randn(2, 2, 4, 2, 2)
    both = torch.cat((noise, torch.full_like(noise, 1e6)), dim=1)
    assert not DiffusionLoss()(both, clean, noise, torch.tensor([3, 4]), scheduler()).any()


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="gamma is 0"):
        MinSNRWeighting(0)
    odd = scheduler()
    odd.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="prediction_type flow is none of epsilon"):
        DiffusionLoss()(*torch.zeros(3, 1, 1, 1, 1), torch.tensor([1]), odd)
