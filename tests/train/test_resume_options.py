"""An option that is changed where a run goes on takes effect, or is refused by name."""
import argparse
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from run_folders import equal, load

from timm.mim.pretrain.checkpoints import Checkpoint
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.flags import run_options
from timm.mim.pretrain.flags.run_options import DEFAULTS, names_with
from timm.mim.pretrain.options import MEANINGLESS, UNSUPPORTED, resolve_learning_rate
from timm.mim.pretrain.resume import changes, check_same_run, restore_optimizer
from timm.mim.pretrain.task import Schedules, create_optimizer

# They decide what is learned, and what is measured: a change is refused.
SAME = (
    'mim', 'mim_kwargs', 'mask_ratio', 'mask_unit', 'model', 'model_kwargs', 'img_size', 'in_chans', 'input_size',
    'input_img_mode', 'exif_rotation', 'mean', 'std', 'interpolation', 'crop_pct', 'naflex_loader',
    'naflex_max_seq_len', 'naflex_train_seq_lens', 'mim_probe_best',
)

# The state of the optimizer was made with them: a change is refused, unless --no-resume-opt drops that state.
SAME_OPTIMIZER = (
    'opt', 'opt_eps', 'opt_betas', 'momentum', 'opt_kwargs', 'layer_decay', 'layer_decay_min_scale',
    'layer_decay_no_opt_scale',
)

# They decide which image is seen when: a change is refused within an epoch.
SAME_WITHIN_EPOCH = ('seed',)

# They decide how a run begins: a new value is refused; leaving them out changes nothing.
BEGINNING = ('pretrained', 'pretrained_path', 'initial_checkpoint', 'start_epoch')

# A change takes effect from the checkpoint on.
TAKES_EFFECT = (
    # dataset
    'data_dir', 'dataset', 'train_split', 'val_split', 'train_num_samples', 'val_num_samples', 'dataset_download',
    'dataset_trust_remote_code', 'input_key', 'target_key', 'max_unreadable', 'max_pixels',
    'mim_bands', 'plan',
    # model
    'drop_path', 'grad_checkpointing', 'grad_checkpointing_every', 'channels_last', 'fast_norm', 'torchcompile',
    'torchcompile_mode',
    # device
    'device', 'amp', 'amp_dtype', 'no_ddp_bb', 'synchronize_step', 'device_modules', 'fsdp', 'fsdp_replicas',
    'fsdp_reshard', 'fsdp_param_dtype', 'fsdp_reduce_dtype', 'fsdp_build_dir',
    # batches
    'batch_size', 'validation_batch_size', 'grad_accum_steps', 'epoch_repeats', 'workers', 'pin_mem',
    # optimizer
    'weight_decay', 'weight_decay_end', 'clip_grad', 'clip_mode',
    # schedule
    'lr', 'lr_base', 'lr_base_size', 'lr_base_scale', 'sched', 'epochs', 'stop_epoch', 'save_epochs', 'warmup_epochs',
    'warmup_lr', 'warmup_prefix', 'min_lr', 'cooldown_epochs', 'decay_milestones', 'decay_epochs', 'decay_rate',
    'lr_noise', 'lr_noise_pct', 'lr_noise_std', 'lr_cycle_mul', 'lr_cycle_decay', 'lr_cycle_limit', 'lr_k_decay',
    'lr_decay_fn', 'lr_stable_timescale',
    # augmentation
    'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter', 'color_jitter_prob',
    'grayscale_prob', 'gaussian_blur_prob', 'aa', 'train_interpolation',
    # exponential moving average
    'model_ema', 'model_ema_decay', 'model_ema_warmup',
    # reports, probes and trackers
    'log_interval', 'val_interval', 'recovery_interval', 'checkpoint_hist', 'checkpoint_format', 'log_tensorboard',
    'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id', 'mim_probe_dir', 'mim_probe', 'mim_probe_interval',
    'mim_probe_layers', 'mim_probe_pool', 'mim_module',
    # loss
    'naflex_loss_scale',
    # where it goes on
    'output', 'experiment', 'resume', 'no_resume_opt',
)

OPTIONS = {**DEFAULTS, 'mim': 'simmim', 'warmup_epochs': 2, 'epochs': 10}
UPDATES = 5  # of an epoch


def options_of(**given):
    return argparse.Namespace(**{**OPTIONS, **given})


def checkpoint_of(update=7, in_place=True, **given):
    run = dict(update=update, updates_per_epoch=UPDATES, images_per_update=4, means={})
    return Checkpoint(Path('x.pth.tar'), dict(args=options_of(**given), run=run), in_place)


def test_every_option_has_its_place(script):
    """A new option needs a decision: put it into one of these lists."""
    listed = [*SAME, *SAME_OPTIMIZER, *SAME_WITHIN_EPOCH, *BEGINNING, *TAKES_EFFECT]
    flags = {action.dest for action in script.parser._actions} - {'help', 'config', 'data'}
    assert len(listed) == len(set(listed))
    assert set(listed) == flags - MEANINGLESS.keys() - UNSUPPORTED.keys() == set(DEFAULTS)
    for rule in ('SAME', 'SAME_OPTIMIZER', 'SAME_WITHIN_EPOCH', 'BEGINNING', 'TAKES_EFFECT'):
        assert set(globals()[rule]) == set(names_with(resume=getattr(run_options, rule)))


@pytest.mark.parametrize('name', [*SAME, *SAME_OPTIMIZER, *SAME_WITHIN_EPOCH, *BEGINNING])
def test_refused(name):
    with pytest.raises(UserError, match=f'{name} |--{name.replace("_", "-")} '):
        check_same_run(checkpoint_of(), options_of(**{name: 'changed'}))
    check_same_run(checkpoint_of(**{name: 'same'}), options_of(**{name: 'same'}))


def test_where_refusals_end():
    for name in SAME_OPTIMIZER:
        check_same_run(checkpoint_of(), options_of(**{name: 'changed'}, no_resume_opt=True))
    check_same_run(checkpoint_of(update=2 * UPDATES), options_of(seed=1))
    check_same_run(checkpoint_of(in_place=False), options_of(start_epoch=0))
    for name in BEGINNING:  # left out, where the run began with it
        check_same_run(checkpoint_of(**{name: 'begun'}), options_of())


@pytest.mark.parametrize('name', sorted(set(TAKES_EFFECT) - {'output', 'experiment', 'resume', 'no_resume_opt',
                                                             'dataset_download'}))
def test_told(name):
    check_same_run(checkpoint_of(), options_of(**{name: 'changed'}))
    assert changes(checkpoint_of(), options_of(**{name: 'changed'})) == [f'{name} {OPTIONS[name]} -> changed']


def test_checkpoint_of_before_an_option():
    """It was trained with what is the default now."""
    checkpoint = checkpoint_of()
    for name in ('mim_kwargs', 'hflip', 'opt_eps'):
        delattr(checkpoint.content['args'], name)
    check_same_run(checkpoint, options_of())
    assert changes(checkpoint, options_of()) == []


class Training:
    """Updates of a small model with the optimizer and the schedules of a run."""

    def __init__(self, **given):
        torch.manual_seed(0)
        self.options = options_of(**given)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        rate = resolve_learning_rate(self.options, 64)
        self.optimizer = create_optimizer(self.model, self.options, rate, torch.device('cpu'))

    def begin(self, update=0):
        self.schedules = Schedules(self.optimizer, self.options, UPDATES)
        self.schedules.step(update)
        return self

    def train(self, first, last):
        for update in range(first, last):
            images = torch.randn(8, 4, generator=torch.Generator().manual_seed(update))
            (self.model(images) - images).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedules.step(update + 1)
        return self

    def saved(self):
        return Checkpoint(Path('x'), dict(optimizer=self.optimizer.state_dict()))


CHANGES = [
    dict(lr=3e-2),
    dict(lr_base=1e-2),
    dict(lr_base_size=64),
    dict(lr_base_scale='sqrt'),
    dict(weight_decay=0.3),
    dict(weight_decay_end=0.5),
    dict(sched='poly'),
    dict(sched='none', lr=1e-3),
    dict(epochs=20),
    dict(warmup_epochs=5),
    dict(warmup_epochs=5, warmup_lr=1e-6),
    dict(min_lr=1e-5, warmup_epochs=0),
]


@pytest.mark.parametrize('change', CHANGES, ids=str)
def test_rates_are_those_of_the_present_options(change):
    """Of a run that had these options from the beginning, at the same update; the moments are those of before."""
    before = Training(weight_decay_end=0.2).begin().train(0, 13)
    given = {'weight_decay_end': 0.2, **change}
    after = Training(**given)
    restore_optimizer(after.optimizer, None, before.saved())
    after.begin(13)
    expected = Training(**given).begin().train(0, 13)
    for update in (13, 14, 22):
        for found, wanted in zip(after.optimizer.param_groups, expected.optimizer.param_groups):
            assert (found['lr'], found['weight_decay']) == (wanted['lr'], wanted['weight_decay'])
        assert any(
            (group['lr'], group['weight_decay']) != (old['lr'], old['weight_decay'])
            for group, old in zip(after.optimizer.param_groups, before.optimizer.param_groups))
        for training in (after, expected, before):
            training.schedules.step(update + 1 if update == 13 else 22)
    states = [list(t.optimizer.state_dict()['state'].values()) for t in (before, after)]
    assert equal(*states)


def test_nothing_changed_is_as_if_never_stopped():
    """To the last bit, groups of parameters included."""
    options = dict(weight_decay_end=0.2, lr=1e-2)
    expected = Training(**options).begin().train(0, 20)
    before, after = Training(**options).begin().train(0, 11), Training(**options)
    after.model.load_state_dict(before.model.state_dict())
    restore_optimizer(after.optimizer, None, before.saved())
    after.begin(11).train(11, 20)
    assert equal(after.model.state_dict(), expected.model.state_dict())
    assert equal(after.optimizer.state_dict(), expected.optimizer.state_dict())


@pytest.mark.parametrize('before, after', [(0.05, 0), (0, 0.05)])
def test_groups_of_another_weight_decay(before, after):
    """Without weight decay all parameters are one group, in another order: states would go to others' parameters."""
    saved = Training(weight_decay=before).begin().train(0, 3).saved()
    with pytest.raises(UserError, match='--weight-decay 0; --no-resume-opt'):
        restore_optimizer(Training(weight_decay=after).optimizer, None, saved)


def test_end_of_a_weight_decay_that_there_is_not():
    with pytest.raises(UserError, match='--weight-decay-end 0.4 needs a --weight-decay above 0'):
        Training(weight_decay=0, weight_decay_end=0.4).begin()
    Training(weight_decay=0, weight_decay_end=0.).begin()


def test_run_trains_with_the_learning_rate_that_it_tells(train, images, finished_run, tmp_path, caplog):
    """With next to none, an epoch changes no weight."""
    folder = shutil.copytree(finished_run, tmp_path / 'run')
    with caplog.at_level(logging.INFO):
        train(f'--data-dir {images} --output {tmp_path} --experiment run --resume auto --epochs 7 --epoch-repeats 4 '
              '--lr 1e-30 --log-interval 1')
    assert 'lr 0.002 -> 1e-30' in caplog.text
    before, after = load(finished_run / 'last.pth.tar'), load(folder / 'last.pth.tar')
    assert after['epoch'] == 6
    assert equal(before['state_dict'], after['state_dict']) and equal(before['task_state'], after['task_state'])
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    assert all(line['lr'] < 1e-29 for line in lines if line['epoch'] == 6 and 'lr' in line)


def test_first_epoch_is_not_gone_to_twice(train, images, tmp_path):
    """The same command goes on, --start-epoch included."""
    flags = f'--data-dir {images} --output {tmp_path} --experiment run --resume auto --start-epoch 1 --epochs 3'
    train(f'{flags} --stop-epoch 2')
    train(flags)
    assert 'resuming after step 6' in (tmp_path / 'run' / 'train.log').read_text()
