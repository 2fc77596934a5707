"""The parts that decide on a step: guard, signal, means, schedules, optimizer."""
import math
import signal

import pytest
import torch
import torch.nn as nn

from timm.mim import create_mim
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.step import RunningMeans, StepGuard, Verdict
from timm.mim.pretrain.task import Schedules, WeightDecaySchedule, create_optimizer
from timm.mim.pretrain.errors import StopSignal
from timm.models import create_model
from timm.optim import create_optimizer_v2

CPU = torch.device('cpu')
FINE = Verdict(finite=True, stop=False)


def step(guard, optimizer, weight, loss, stop=False):
    """A step with a gradient of one, if the guard allows it."""
    verdict = guard.check(torch.tensor(loss), stop)
    weight.grad = torch.ones_like(weight)
    if verdict.finite:
        optimizer.step()
    return verdict


@pytest.mark.parametrize('loss', [float('nan'), float('inf'), -float('inf')])
def test_guard_of_a_fused_optimizer(loss):
    """It tells a step later, and no step is taken from the bad one on, even if the next loss is fine."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    guard = StepGuard(optimizer, CPU, distributed=False, scaler=False)
    assert guard.deferred
    assert step(guard, optimizer, weight, 1.) == FINE
    assert step(guard, optimizer, weight, 1.) == FINE
    before = weight.detach().clone()
    assert (before < -0.1).all()
    assert step(guard, optimizer, weight, loss) == FINE
    assert torch.equal(weight, before)
    assert not step(guard, optimizer, weight, 1.).finite
    assert torch.equal(weight, before)
    assert all(state['step'] == 2 for state in optimizer.state.values())


def test_guard_of_a_fused_optimizer_tells_before_anything_is_saved():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    guard = StepGuard(optimizer, CPU, distributed=False, scaler=False)
    step(guard, optimizer, weight, float('nan'))
    assert not guard.finish().finite
    step(guard, optimizer, weight, 1., stop=True)
    assert guard.finish().stop and guard.finish() == FINE


@pytest.mark.parametrize('optimizer, scaler', [
    (lambda p: torch.optim.SGD(p, lr=0.1), False),
    (lambda p: torch.optim.AdamW(p, lr=0.1, fused=False), False),
    (lambda p: torch.optim.AdamW(p, lr=0.1, fused=True), True),  # the scaler has its own way
])
def test_guard_of_others_tells_at_once(optimizer, scaler):
    weight = nn.Parameter(torch.zeros(3))
    optimizer = optimizer([weight])
    guard = StepGuard(optimizer, CPU, distributed=False, scaler=scaler)
    assert not guard.deferred
    assert step(guard, optimizer, weight, 1.) == FINE
    assert not step(guard, optimizer, weight, float('nan')).finite
    assert step(guard, optimizer, weight, 1., stop=True) == Verdict(finite=True, stop=True)
    assert guard.finish() == FINE


def test_guard_looks_at_weights():
    guard = StepGuard(torch.optim.SGD([torch.zeros(1)]), CPU, distributed=False, scaler=False)
    assert guard.all_finite([torch.zeros(3), torch.ones(2)])
    assert not guard.all_finite([torch.zeros(3), torch.tensor([0., float('inf')])])


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stop_signal(number):
    previous = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with StopSignal() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop and stop.received == number
    assert {n: signal.getsignal(n) for n in previous} == previous


def test_means():
    means = RunningMeans(CPU)
    for loss in (1., 2., 6.):
        means.add(loss=torch.tensor(loss), other=torch.tensor(2 * loss))
    assert means.report() == dict(loss=3., other=6.)
    means.add(loss=torch.tensor(7.), other=torch.tensor(0.))
    assert means.report() == dict(loss=7., other=0.)
    assert means.report() == {}
    assert means.of_epoch() == dict(loss=4., other=4.5)


@pytest.mark.parametrize('place', [1, 37, 60, 99])
def test_means_after_an_interruption(place):
    """Not a bit is lost, in what is reported next as in what the epoch comes to."""
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 10 ** torch.linspace(-4, 4, 100)

    def means_of(interrupted):
        means, reports = RunningMeans(CPU), []
        for number, loss in enumerate(losses, start=1):
            means.add(loss=loss)
            if number % 20 == 0:
                reports.append(means.report())
            if interrupted and number == place:
                saved, means = means.state_dict(), RunningMeans(CPU)
                means.load_state_dict(saved)
        return reports, means.of_epoch()
    assert means_of(True) == means_of(False)
    assert means_of(False)[1]['loss'] == math.fsum(losses.tolist()) / 100  # correctly rounded


@pytest.mark.parametrize('sched, after_warm_up', [
    ('cosine', lambda update: 0.5 * (1 + math.cos(math.pi * update / 40))),
    # timm's counts the update that follows
    ('multistep', lambda update: 0.1 ** sum(update + 1 >= 8 * epoch for epoch in (2, 4))),
])
def test_learning_rate_steps_at_every_update(sched, after_warm_up):
    """Five epochs of eight updates, the first of them warm-up, by the formulas of the papers."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.)
    options = RunOptions(**{
        'sched': sched, 'epochs': 5, 'warmup_epochs': 1, 'decay_milestones': [2, 4]})
    schedules = Schedules(optimizer, options, updates_per_epoch=8)
    for update in range(40):
        schedules.step(update)
        expected = update / 8 if update < 8 else after_warm_up(update)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(2 * expected, abs=1e-12)


def test_weight_decay_schedule():
    """w(t) = e + (s - e) (1 + cos(pi t / T)) / 2, as in facebookresearch/ijepa, src/utils/schedulers.py."""
    groups = [dict(params=[torch.zeros(1)], weight_decay=0.04), dict(params=[torch.zeros(1)], weight_decay=0.)]
    optimizer = torch.optim.SGD(groups, lr=1.)
    schedule = WeightDecaySchedule(optimizer, 0.4, 8)
    for update in range(10):
        schedule.step(update)
        share = min(update, 8) / 8
        expected = 0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * share))
        assert optimizer.param_groups[0]['weight_decay'] == pytest.approx(expected, abs=1e-12)
        assert optimizer.param_groups[1]['weight_decay'] == 0


def test_weight_decay_schedule_goes_on():
    """From the state of the optimizer, which holds the present value."""
    optimizer = torch.optim.SGD([dict(params=[torch.zeros(1)], weight_decay=0.04)], lr=1.)
    WeightDecaySchedule(optimizer, 0.4, 8).step(5)
    resumed = torch.optim.SGD([dict(params=[torch.zeros(1)], weight_decay=0.04)], lr=1.)
    resumed.load_state_dict(optimizer.state_dict())
    for each in (optimizer, resumed):
        WeightDecaySchedule(each, 0.4, 8).step(6)
    assert resumed.param_groups[0]['weight_decay'] == optimizer.param_groups[0]['weight_decay']


def test_weight_decay_stays_without_an_end():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1., weight_decay=0.1)
    WeightDecaySchedule(optimizer, None, 8).step(4)
    assert optimizer.param_groups[0]['weight_decay'] == 0.1


def options_of(**values):
    return RunOptions(**values)


@pytest.mark.parametrize('opt, opt_kwargs, fused', [
    ('adamw', {}, True),
    ('adam', {}, True),
    ('adamw', dict(fused=False), False),
    ('adamw', dict(foreach=True), False),
    ('momentum', {}, False),
    ('lamb', {}, False),
])
def test_fused_where_there_is_one(opt, opt_kwargs, fused):
    optimizer = create_optimizer(nn.Linear(2, 2), options_of(opt=opt, opt_kwargs=opt_kwargs), 1e-3, CPU)
    assert bool(optimizer.defaults.get('fused')) == fused


@pytest.mark.parametrize('mim, options', [
    ('simmim', dict(mask_unit=16)),
    ('mae', dict(decoder_depth=1, decoder_dim=32, decoder_heads=2)),
    ('ijepa', dict(predictor_depth=1, predictor_dim=32, predictor_heads=2, num_targets=2)),
    ('data2vec', dict(mask_ratio=0.5, decoder_layers=1)),
])
def test_layer_decay_is_that_of_the_plain_model(mim, options):
    """Each weight of the backbone has the rate that timm gives it when the model is trained by itself."""
    def rates(model, prefix=''):
        groups = create_optimizer_v2(model, opt='adamw', lr=1., weight_decay=0.05, layer_decay=0.7).param_groups
        names = {parameter: name for name, parameter in model.named_parameters()}
        return {
            names[parameter].removeprefix(prefix): (group['lr_scale'], group['weight_decay'])
            for group in groups for parameter in group['params']}
    model = create_model('test_vit', num_classes=0, img_size=64)
    expected = rates(create_model('test_vit', num_classes=0, img_size=64))
    method = create_mim(mim, model, img_size=64, **options)
    found = rates(method, 'backbone.')
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and trained <= found.keys()
    factor = 0.7  # the method stands above the model, as a layer more
    for name in trained:
        assert found[name] == (pytest.approx(expected[name][0] * factor), expected[name][1]), name
    others = [scale for name, (scale, _) in found.items() if name not in trained]
    assert all(scale == 1 for scale in others)  # what belongs to the method learns at the full rate
