"""The teacher's discriminator: frozen to the last buffer, passed through by gradients, or learning."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from pocketgan.compression import TeacherDiscriminator
from pocketgan.losses import HingeLoss, LeastSquaresLoss, NonSaturatingLoss


class Judge(nn.Module):
    """With everything that moves in training mode: power iteration, statistics, dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            spectral_norm(nn.Conv2d(6, 4, 3)), nn.BatchNorm2d(4), nn.Dropout(), spectral_norm(nn.Conv2d(4, 1, 3))
        )

    def forward(self, photo, edit):
        return self.layers(torch.cat((photo, edit), dim=1))


@pytest.fixture
def judge():
    torch.manual_seed(0)
    return Judge()


def pictures():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(2)]


def test_a_frozen_teacher_never_changes_and_gradients_pass_through(judge):
    before = copy.deepcopy(judge.state_dict())
    student = nn.Sequential(nn.Conv2d(3, 3, 1))
    parent = nn.ModuleList([student, TeacherDiscriminator(judge)]).train()
    optimizer = torch.optim.SGD([p for p in parent.parameters() if p.requires_grad], lr=1.0)
    photo, _ = pictures()
    for _ in range(3):
        parent[1].generator_loss(HingeLoss(), photo, student(photo)).backward()
        assert all(parameter.grad.any() for parameter in student.parameters())
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())
    assert not any(part.training for part in judge.modules())
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    assert {name.split(".")[0] for name in parent.state_dict()} == {"0"}


def test_a_strict_load_does_not_ask_for_a_frozen_teacher(judge):
    teacher = TeacherDiscriminator(judge)
    before = copy.deepcopy(judge.state_dict())
    teacher.load_state_dict({}, strict=True)
    assert all(torch.equal(value, before[name]) for name, value in judge.state_dict().items())


@pytest.mark.parametrize("loss", [HingeLoss(), LeastSquaresLoss(), NonSaturatingLoss()])
def test_loss_is_the_generators_under_the_teacher(judge, loss):
    photo, fake = pictures()
    expected = loss.generator(copy.deepcopy(judge).eval()(photo, fake))
    assert torch.equal(TeacherDiscriminator(judge).generator_loss(loss, photo, fake), expected)


def test_a_learning_teacher_trains_and_is_stored(judge):
    teacher = TeacherDiscriminator(judge, learns=True).train()
    before = copy.deepcopy(teacher.state_dict())
    photo, fake = pictures()
    HingeLoss().discriminator(teacher(photo, photo), teacher(photo, fake)).backward()
    torch.optim.SGD(teacher.parameters(), lr=1.0).step()
    changed = {name for name, value in teacher.state_dict().items() if not torch.equal(value, before[name])}
    assert any("weight" in name for name in changed)
    assert all(name.startswith("judge.") for name in before)


def test_its_digest_is_of_the_weights_as_they_came(judge):
    other = copy.deepcopy(judge)
    first = TeacherDiscriminator(judge).sha256
    assert TeacherDiscriminator(other, learns=True).sha256 == first
    with torch.no_grad():
        other.layers[0].bias.add_(1)
    assert TeacherDiscriminator(other).sha256 != first
