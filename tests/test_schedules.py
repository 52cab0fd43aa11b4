"""Learning rate schedules against their equations, and the optimizers that take the rates."""

import math

import pytest
import torch
from torch import nn

from mmspeech.errors import UserError
from mmspeech.training import optimizers
from mmspeech.training.schedules import SCHEDULES
from mmspeech.training.trainer import TrainingConfig


def scales(**settings: object) -> list[float]:
    config = TrainingConfig(updates=100, lr=1.0, **settings)
    return [SCHEDULES[config.schedule](update, config) for update in range(101)]


def test_polynomial_rises_from_zero_and_falls_to_zero():
    """u / warm-up, then (updates - u) / (updates - warm-up)."""
    factor = scales(schedule="polynomial", warmup_updates=20)
    assert factor[0] == 0 and factor[10] == 0.5 and factor[20] == 1 and factor[100] == 0
    assert factor[60] == pytest.approx(0.5)


def test_tri_stage_warms_up_from_one_percent_holds_and_decays_to_five_percent():
    """init + (1 - init) u / warm-up; 1; final ^ (u / decay); final."""
    factor = scales(schedule="tri_stage", warmup_updates=20, hold_updates=10, decay_updates=40)
    assert factor[0] == 0.01 and factor[20] == factor[29] == 1
    assert factor[10] == pytest.approx(0.505)
    assert factor[50] == pytest.approx(math.sqrt(0.05))
    assert factor[70] == factor[100] == pytest.approx(0.05)


def test_tri_stage_decays_over_the_rest_unless_told_otherwise():
    factor = scales(schedule="tri_stage", warmup_updates=20)
    assert factor[100] == pytest.approx(0.05) and factor[99] > 0.05


def test_cosine_is_halfway_at_half_time():
    factor = scales(schedule="cosine", warmup_updates=20)
    assert factor[0] == 0 and factor[20] == 1
    assert factor[60] == pytest.approx(0.5) and factor[100] == pytest.approx(0)


def test_constant_stays_after_the_warm_up():
    assert scales(schedule="constant", warmup_updates=4)[:6] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert set(scales(schedule="constant")) == {1.0}


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="warmup_updates: 200 of 100 updates"):
        TrainingConfig(updates=100, lr=1.0, warmup_updates=200)
    with pytest.raises(UserError, match="average_last"):
        TrainingConfig(updates=100, lr=1.0, use="average")


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_adam_is_the_public_one(eps):
    """p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps) + lr wd p, of biases too."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    expected = [p.detach().clone() for p in layer.parameters()]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in expected]
    optimizer = optimizers.build(layer, "adam", betas=(0.9, 0.98), eps=eps, weight_decay=0.01)
    for t in range(1, 6):
        lr = 0.1 / t
        for p, e, (m, v) in zip(layer.parameters(), expected, moments, strict=True):
            p.grad = torch.randn_like(p)
            m.mul_(0.9).add_(0.1 * p.grad)
            v.mul_(0.98).add_(0.02 * p.grad**2)
            step = lr * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (v.sqrt() + eps)
            e.sub_(lr * 0.01 * e).sub_(step)
        optimizers.set_rates(optimizer, lr, t - 1)
        optimizer.step()
        for p, e in zip(layer.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=1e-6, atol=1e-9)


def test_adamw_equals_torch_and_leaves_biases_undecayed():
    """Where the gradient is zero only the decay moves a parameter: matrices yes, vectors no."""
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = optimizers.build(layer, "adamw", weight_decay=0.5)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.set_rates(optimizer, 0.1, 0)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias.detach(), bias)


def test_parameters_that_never_take_gradients_are_left_out():
    """An EMA teacher must not be decayed."""
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert optimizers.build(layer, "adam", weight_decay=0.1).param_groups[0]["params"] == [layer.weight]
