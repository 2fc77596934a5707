"""Parts of a method with an optimizer and schedules of their own: as if each were trained by itself."""
import copy
import json
import shutil

import pytest
import torch
import torch.nn as nn
from processes import run_processes
from test_pretrain_resume import equal

from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.optimizers import JoinedOptimizer
from timm.mim.pretrain.sharding import load_whole_optimizer
from timm.mim.pretrain.step import StepGuard
from timm.mim.pretrain.task import Schedules, create_optimizer

CPU = torch.device('cpu')
OWN = dict(opt='momentum', momentum=0.5, weight_decay=0.2, lr_scale=0.1, sched='none')
CAPI = (
    '--mim capi --mim-kwargs num_clusters=12 predictor_depth=2 predict_ratio=0.5 momentum_warmup=0.5 '
    'clustering_lr_scale={scale} --model-ema --model-ema-decay 0.5 --experiment run --data-dir {images} ')


class Method(nn.Module):
    def __init__(self, own):
        super().__init__()
        self.body, self.part = nn.Linear(3, 4), nn.Linear(4, 2)
        self.own = own

    def own_optimizers(self):
        return self.own

    def forward(self, x):
        return self.part(self.body(x).tanh()).square().sum()


def method_with(own):
    torch.manual_seed(0)
    return Method(own)


def options_of(**values):
    return RunOptions(**{**dict(opt='adamw', weight_decay=0.1, epochs=4, warmup_epochs=0), **values})


def train_steps(method, optimizer, steps, schedules=None):
    for step in steps:
        if schedules is not None:
            schedules.step(step)
        method(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_steps_are_those_of_separate_optimizers():
    method, expected = method_with({'part.': OWN}), method_with({})
    optimizer = create_optimizer(method, options_of(), 0.01, CPU)
    assert isinstance(optimizer, JoinedOptimizer) and all(p.requires_grad for p in method.parameters())
    body = torch.optim.AdamW([
        dict(params=[expected.body.bias], weight_decay=0.), dict(params=[expected.body.weight], weight_decay=0.1)],
        lr=0.01, fused=True)
    part = torch.optim.SGD(expected.part.parameters(), lr=0.001, momentum=0.5, weight_decay=0.2)
    train_steps(method, optimizer, range(4))
    for step in range(4):
        train_steps(expected, body, [])
        expected(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).backward()
        for each in (body, part):
            each.step()
            each.zero_grad()
    assert equal(method.state_dict(), expected.state_dict())


def test_state_is_saved_and_loaded():
    method = method_with({'part.': OWN})
    optimizer = create_optimizer(method, options_of(), 0.01, CPU)
    train_steps(method, optimizer, range(2))
    saved = json.loads(json.dumps({n: len(s) for n, s in optimizer.state_dict()['state'].items()}))
    assert saved == {'0': 3, '1': 3, '2': 1, '3': 1}  # moments and steps of AdamW, then the momentum of SGD
    state, weights = copy.deepcopy((optimizer.state_dict(), method.state_dict()))
    train_steps(method, optimizer, range(2, 4))
    resumed = method_with({'part.': OWN})
    resumed.load_state_dict(weights)
    other = create_optimizer(resumed, options_of(), 0.01, CPU)
    load_whole_optimizer(other, state)
    train_steps(resumed, other, range(2, 4))
    assert equal(resumed.state_dict(), method.state_dict())
    with pytest.raises(ValueError, match='the optimizers have 3 parameter groups, and the state has 2'):
        other.load_state_dict(create_optimizer(method_with({}), options_of(), 0.01, CPU).state_dict())


def test_schedules():
    """The run follows a cosine to zero; one part has no schedule, another the schedule of the run at half its rate."""
    method = method_with({'part.weight': OWN, 'part.bias': dict(lr_scale=0.5)})
    optimizer = create_optimizer(method, options_of(weight_decay_end=0.3), 0.01, CPU)
    schedules = Schedules(optimizer, options_of(weight_decay_end=0.3), 5)
    assert schedules.num_epochs == 4
    rates, decays = [], []
    for update in (0, 10, 20):
        schedules.step(update)
        rates.append([group['lr'] for group in optimizer.param_groups])
        decays.append([group['weight_decay'] for group in optimizer.param_groups])
    assert rates[0] == pytest.approx([0.01, 0.01, 0.001, 0.005])
    assert rates[1] == pytest.approx([0.005, 0.005, 0.001, 0.0025])
    assert rates[2] == pytest.approx([0, 0, 0.001, 0], abs=1e-9)
    assert decays[0] == pytest.approx([0, 0.1, 0.2, 0.1]) and decays[2] == pytest.approx([0, 0.3, 0.2, 0.1])


@pytest.mark.parametrize('own, fused', [(dict(lr_scale=2.), True), (OWN, False)])
def test_loss_that_is_not_finite_stops_every_part(own, fused):
    method = method_with({'part.': own})
    optimizer = create_optimizer(method, options_of(), 0.01, CPU)
    guard = StepGuard(optimizer, CPU, False, False)
    assert guard.deferred == fused  # otherwise the trainer stops before the step
    before = {name: parameter.clone() for name, parameter in method.state_dict().items()}
    loss = method(torch.full((1, 3), torch.nan))
    verdict = guard.check(loss.detach(), False)
    if fused:
        loss.backward()
        optimizer.step()
        assert equal(method.state_dict(), before) and not guard.finish().finite
    else:
        assert not verdict.finite


@pytest.mark.parametrize('own, message', [
    ({'part.': dict(lr_scale=0.1, rate=1)}, "The optimizer of 'part.' has a setting that no run has: rate."),
    ({'head.': {}}, "The optimizer of 'head.' has no parameters."),
])
def test_mistakes(own, message):
    with pytest.raises(UserError) as error:
        create_optimizer(method_with(own), options_of(), 0.01, CPU)
    assert str(error.value) == message


def state_of(folder):
    return torch.load(folder / 'last.pth.tar', weights_only=False)


def test_run_of_capi_goes_on(train, images, tmp_path):
    """A run that was interrupted equals one that was not, bit for bit; the clustering has its own rate and decay."""
    flags = CAPI.format(scale=0.5, images=images) + '--lr 1e-3 --epochs 2 --model-kwargs drop_path_rate=0.2'
    train(f'{flags} --output {tmp_path}/a')
    folder = shutil.copytree(tmp_path / 'a' / 'run', tmp_path / 'b' / 'run')
    shutil.copyfile(folder / 'checkpoint-0.pth.tar', folder / 'last.pth.tar')
    (folder / 'checkpoint-1.pth.tar').unlink()
    train(f'{flags} --output {tmp_path}/b --resume auto')
    expected, resumed = (state_of(tmp_path / name / 'run') for name in 'ab')
    for part in ('epoch', 'state_dict', 'task_state', 'state_dict_ema', 'optimizer'):
        assert equal(expected[part], resumed[part]), part
    own = expected['optimizer']['param_groups'][-1]
    assert own['weight_decay'] == 0.01 and own['initial_lr'] == 5e-4 and own['betas'] == (0.9, 0.95)
    assert len(own['params']) == 2
    assert expected['optimizer']['state'][own['params'][0]]['exp_avg'].any()
    lines = [json.loads(line) for line in (tmp_path / 'a' / 'run' / 'metrics.jsonl').read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {'eval_assignment_entropy', 'eval_cluster_entropy', 'eval_target_rank', 'eval_loss_of_equal_shares'} <= names
    assert list((tmp_path / 'a' / 'run').rglob('*.png'))


def test_sharded_run_of_capi(train, images, tmp_path):
    """Two processes with shards of the parameters and of both optimizers' states, and balanced over both, as one."""
    # momentum, whose sums differ by rounding alone, and a small step of the clustering, whose AdamW scales gradients
    flags = CAPI.format(scale=1e-4, images=images) + '--opt momentum --lr 0.2 --epochs 1'
    train(f'{flags} --output {tmp_path}/single --batch-size 8')
    run_processes(2, f'{flags} --output {tmp_path}/sharded --batch-size 4 --fsdp')
    single, sharded = (state_of(tmp_path / name / 'run') for name in ('single', 'sharded'))
    for part in ('state_dict', 'state_dict_ema'):
        for name, tensor in single[part].items():
            torch.testing.assert_close(sharded[part][name], tensor, atol=3e-5, rtol=0, msg=name)
    states = [checkpoint['optimizer']['state'] for checkpoint in (single, sharded)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert state.keys() == states[1][number].keys()
        for name, tensor in state.items():
            torch.testing.assert_close(states[1][number][name], tensor, atol=1e-4, rtol=1e-3, msg=f'{number} {name}')
    for name, tensor in single['task_state']['method'].items():
        torch.testing.assert_close(sharded['task_state']['method'][name], tensor, atol=3e-5, rtol=0, msg=name)
