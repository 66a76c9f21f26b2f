"""What the rules keep."""

import pytest
import torch
from torch import nn

from pocketgan.compression import ChannelGraph, KeptShare, LatencyBudget, QualityBudget
from pocketgan.compression.pruning_rule import thresholds


@pytest.fixture
def groups():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 3, 1)
    )
    return ChannelGraph(network, (torch.rand(1, 3, 8, 8),)).groups


@pytest.fixture
def scales():
    random = torch.Generator().manual_seed(0)
    return {"0": torch.rand(16, generator=random), "2": torch.rand(32, generator=random)}


def milliseconds(kept):
    return float(len(kept["0"]) + 2 * len(kept["2"]))


def no_cost(_):
    raise AssertionError("this rule measures nothing")


def test_a_share_keeps_the_strongest_in_whole_multiples(groups, scales):
    kept = KeptShare(0.3, multiple=4).choose(scales, groups, no_cost, no_cost)
    assert {name: len(units) for name, units in kept.items()} == {"0": 8, "2": 12}
    for name, units in kept.items():
        gone = sorted(set(range(len(scales[name]))) - set(units))
        assert scales[name][units].min() > scales[name][gone].max()
        assert units == sorted(units)


def test_a_layer_narrower_than_the_multiple_stays_whole(groups, scales):
    kept = KeptShare(0.01, multiple=24).choose(scales, groups, no_cost, no_cost)
    assert {name: len(units) for name, units in kept.items()} == {"0": 16, "2": 24}


@pytest.mark.parametrize("budget", [12, 30, 50, 79, 200])
def test_the_latency_budget_takes_the_widest_that_fits(groups, scales, budget):
    rule = LatencyBudget(budget, multiple=4)
    kept = rule.choose(scales, groups, milliseconds, no_cost)
    every = [rule.above(scales, groups, threshold) for threshold in thresholds(scales)]
    assert milliseconds(kept) == max(milliseconds(one) for one in every if milliseconds(one) <= budget)
    assert len(rule.measured) <= 8


def test_what_met_the_budget_once_gives_way_to_a_narrower_one(groups, scales):
    """A clock that is over the budget whenever the widths chosen are timed a second time."""
    times = {}

    def noisy(kept):
        widths = (len(kept["0"]), len(kept["2"]))
        times[widths] = times.get(widths, 0) + 1
        return milliseconds(kept) if times[widths] == 1 else 1000.0

    quiet = LatencyBudget(50, multiple=4).choose(scales, groups, milliseconds, no_cost)
    kept = LatencyBudget(50, multiple=4).choose(scales, groups, noisy, no_cost)
    assert milliseconds(kept) < milliseconds(quiet)
    assert max(times.values()) == 2


def test_a_budget_that_nothing_meets_says_what_can_be_had(groups, scales):
    rule = LatencyBudget(11, multiple=4)
    with pytest.raises(ValueError, match=r"the narrowest network that is allowed takes 12\.00 ms; the budget is 11 ms"):
        rule.choose(scales, groups, milliseconds, no_cost)
    with pytest.raises(ValueError, match=r"takes 12\.00 ms, the whole one 80\.00 ms; the budget is 11 ms"):
        rule.check(groups, milliseconds)


def test_a_budget_that_the_whole_network_meets_is_told(groups):
    with pytest.warns(UserWarning, match=r"takes 80\.00 ms as it is, within the budget of 90 ms"):
        LatencyBudget(90, multiple=4).check(groups, milliseconds)


def test_a_rule_says_how_it_was_made():
    assert repr(LatencyBudget(12)) == "LatencyBudget(budget_ms=12, multiple=8)"
    assert repr(KeptShare(0.5, multiple=2)) == "KeptShare(share=0.5, multiple=2)"


def test_a_notch_has_the_operations_that_it_should(groups, scales):
    rule = QualityBudget(0.03, 100, shrink_factor=0.5, multiple=2)
    kept = rule.choose(scales, groups, no_cost, lambda kept: int(milliseconds(kept)))
    whole = milliseconds({"0": range(16), "2": range(32)})
    assert 0.4 * whole < milliseconds(kept) <= 0.5 * whole


def test_what_cannot_shrink_stays_whole(groups, scales):
    rule = QualityBudget(0.03, 100, multiple=32)
    kept = rule.choose(scales, groups, no_cost, lambda kept: int(milliseconds(kept)))
    assert {name: len(units) for name, units in kept.items()} == {"0": 16, "2": 32}


def test_scales_must_be_finite(groups, scales):
    scales["2"][3] = float("nan")
    with pytest.raises(ValueError, match="scales of layer 2 are not finite; the training has diverged"):
        LatencyBudget(30).choose(scales, groups, milliseconds, no_cost)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeptShare(0), "share is 0"),
        (lambda: KeptShare(0.5, multiple=0), "multiple is 0"),
        (lambda: LatencyBudget(0), "budget_ms is 0"),
        (lambda: QualityBudget(-0.1, 100), "max_quality_loss -0.1"),
        (lambda: QualityBudget(0.1, 0), "notch_images 0"),
        (lambda: QualityBudget(0.1, 10, 1), "shrink_factor 1"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
