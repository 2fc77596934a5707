"""What the user asks for: names, defaults, a configuration file, and what is refused."""
import argparse
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mutations import flip_a_bit
from tiny_runs import SCRIPT, environment

import timm
from timm.loss import compute_class_weights, create_classification_loss
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.reporting.records import start_wandb

# Defaults of timm's script, release 1.0.31, that are not None, False, '', 0, {} or []. Its device is cuda, ours the one
# that there is.
DEFAULTS = dict(
    train_split='train', val_split='validation', model='resnet50', batch_size=128, grad_accum_steps=1,
    amp_dtype='float16', opt='sgd', momentum=0.9, weight_decay=2e-5, clip_mode='norm', sched='cosine', lr_base=0.1,
    lr_base_size=256, lr_noise_pct=0.67, lr_noise_std=1.0, lr_cycle_mul=1.0, lr_cycle_decay=0.5, lr_cycle_limit=1,
    lr_k_decay=1.0, warmup_lr=1e-5, epochs=300, decay_milestones=[90, 180, 270], warmup_epochs=5, patience_epochs=10,
    decay_rate=0.1, scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3], hflip=0.5, color_jitter=0.4, remode='pixel', recount=1,
    mixup_prob=1.0, mixup_switch_prob=0.5, mixup_mode='batch', train_interpolation='random', dist_bn='reduce',
    model_ema_decay=0.9998, seed=42, worker_seeding='all', log_interval=50, val_interval=1, checkpoint_hist=10,
    workers=4, train_size_schedule='constant', train_size_schedule_spread=0.65, train_size_random_mix=0.1,
    variable_batch_loss_scale='none', naflex_train_seq_lens=[128, 256, 576, 784, 1024], naflex_max_seq_len=576,
    naflex_loss_scale='linear', kd_distill_type='logit', kd_loss_type='kl', kd_temperature=4.0,
    kd_token_distill_type='soft', task='classification', multilabel_threshold=0.5, smoothing=0.1,
)
# Defaults that timm.loss has too.
OURS = {'loss_weight_power', 'loss_weight_beta', 'asl_gamma_pos', 'asl_gamma_neg', 'asl_clip', 'asl_reduction',
        'poly_epsilon', 'twoway_tp', 'twoway_tn', 'db_neg_scale', 'db_init_bias', 'db_focal_gamma'}


def test_defaults(script):
    args, text = script._parse_args([])
    chosen = {name: value for name, value in vars(args).items() if value and name not in OURS}
    assert chosen == DEFAULTS
    assert yaml.safe_load(text) == vars(args)


def test_defaults_are_those_of_the_losses(script):
    args = vars(script._parse_args([])[0])
    theirs = {name: p.default for name, p in inspect.signature(create_classification_loss).parameters.items()}
    weights = {f'loss_weight_{n}': p.default for n, p in inspect.signature(compute_class_weights).parameters.items()}
    for name in OURS:
        assert args[name] == {**weights, **theirs}[name]


def test_every_flag_is_read(script):
    """None is accepted and then forgotten: the text of each is in the code that a supervised run goes through."""
    package, scripts = Path(timm.__file__).parent, SCRIPT.parent / 'training'
    files = [file for file in scripts.glob('*.py') if not re.search('flags|validation|class_counts', file.name)]
    files += [package / 'optim' / '_optim_factory.py', package / 'scheduler' / 'scheduler_factory.py',
              package / 'data' / 'config.py']
    text = '\n'.join([*(file.read_text() for file in files), inspect.getsource(start_wandb)])
    names = {action.dest for action in script.parser._actions}
    elsewhere = {
        'help', 'config', 'mim',  # the parser itself
        'local_rank',  # the environment decides, says its help
        'jsd_loss', 'bce_loss', 'loss_class_weight',  # f'{name}_loss', f'loss_{kind}'
    }
    read = {name for name in names if re.search(rf'(args|options)\.{name}\b|cfg\.{name}\b|[\'"]{name}[\'"]', text)}
    assert names - elsewhere - read == script.config.pretraining_flags()


def test_number_of_flags_in_the_readme(script):
    names = {action.dest for action in script.parser._actions} - {'help', 'config', 'data', 'mim'}
    count = len(names - script.config.pretraining_flags())
    page = (SCRIPT.parent / 'docs' / 'training_with_labels.md').read_text()
    assert f'{count - 1} of the {count} flags' in page  # all but --tta


def test_help_shows_defaults(script):
    text = ' '.join(script.parser.format_help().split())
    assert 'decay of the average (default: 0.9998)' in text
    assert 'without --amp: float32, bfloat16 or float16 --local_rank' in text  # nothing is said where there is none


def test_command_line_goes_before_the_file(script, tmp_path, caplog):
    (tmp_path / 'c.yaml').write_text(
        'batch-size: 8\nlr: 3e-4\namp: true\nepochs: "7"\nmodel_kwargs: {depth: 2}\nmean: [0.5]\ncolor_jitter:\n'
        'torchcompile: true\nimg_size: [64, 32]\nnot_a_flag: 1\nopt_kwargs: [foreach=True]\n')
    args, _ = script._parse_args(['-c', str(tmp_path / 'c.yaml'), '--batch-size', '4', '--in-chans', '1'])
    assert (args.batch_size, args.lr, args.amp, args.epochs, args.mean) == (4, 3e-4, True, 7, [0.5])
    assert args.model_kwargs == {'depth': 2} and args.opt_kwargs == {'foreach': True}
    assert args.color_jitter is None and args.torchcompile == 'inductor'
    assert (args.img_size, args.input_size) == (None, [1, 64, 32])
    assert args.weight_decay == 2e-5
    assert 'not_a_flag' in caplog.text
    assert script._parse_args([])[0].batch_size == 128, 'a file has no say in later runs'


def test_arguments_of_a_run_run_again(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    args, text = script._parse_args(['folder', '--bce-loss', '--bce-pos-weight', '2', '--drop-connect', '0.1'])
    (tmp_path / 'args.yaml').write_text(text)
    again, _ = script._parse_args(['-c', str(tmp_path / 'args.yaml')])
    assert vars(again) == vars(args)
    assert (args.data_dir, args.loss, args.loss_pos_weight, args.drop_path) == ('folder', 'bce', '2.0', 0.1)


MISTAKES = [
    ('--mask-ratio 0.5', '--mask-ratio works only with --mim'),
    ('--tta 2', '--tta is not supported'),
    ("--resume auto --experiment ''", '--experiment'),
    ('--amp --model-dtype bfloat16', 'leave out --model-dtype bfloat16'),
    ('--amp-dtype float64', "float16 or bfloat16, not 'float64'"),
    ('--img-size 32 64 96', 'height and width'),
    ('--task multilabel --kd-model-name resnet50', '--task classification'),
    ('--task multilabel --aug-splits 2', '--task classification'),
    ('--target-format multihot', '--task multilabel'),
    ('--multilabel-threshold 1.5', 'between 0 and 1'),
    ('--jsd-loss', 'jsd_splits'),
    ('--jsd-loss --bce-loss', '--bce-loss contradicts --loss jsd'),
    ('--bce-loss --bce-pos-weight 2 --loss-pos-weight 3', 'give one of them'),
    ('--loss zlpr', 'multi-label'),
    ('--bce-sum', 'only apply to the bce loss'),
    ('--aug-splits 1', '--aug-splits must be'),
    ('--aug-splits 2 --mixup 0.2', '--no-prefetcher'),
    ('--naflex-loader --train-img-sizes 32 64', 'choose one'),
    ('--naflex-loader --use-multi-epochs-loader', '--use-multi-epochs-loader'),
    ('--naflex-loader --kd-model-name resnet50', 'patches'),
    ('--naflex-loader --aug-repeats 3', '--aug-repeats'),
    ('--naflex-loader --mixup 0.2 --mixup-mode elem', '--mixup-mode'),
    ('--naflex-loader --naflex-patch-sizes 8 16 --naflex-patch-size-probs 1', 'one probability for each'),
    ('--split-bn', '--split-bn needs'),
    ('--split-bn --resplit --sync-bn', 'exclude each other'),
    ('-c nowhere.yaml', "'nowhere.yaml' cannot be read"),
    ('--device tpuu', '--device tpuu'),
    ('--device-modules nowhere', '--device-modules nowhere'),
    ('--resume nowhere', "no checkpoint 'nowhere'"),
    ('--model resnet500', "timm has no model 'resnet500'"),
    ('--pretrained-path nowhere', '--pretrained-path nowhere: there is no such file'),
    ('--model-kwargs foo=1', "'foo'"),
    ('--mean 1 2', 'one per channel'),
    ('--data-dir nowhere', "--data-dir: there is no 'nowhere'"),
    ('--dataset torch/nowhere', '--dataset torch/nowhere, split train'),
    ('--aa foo', 'AA policy foo'),
    ('--aug-repeats 3', 'RepeatAugment'),
    ('--kd-model-name resnet500', '--kd-model-name'),
    ('--loss-class-weight 1,2,3 --bce-loss', '--loss-class-weight has 3 entries but the model has 2 classes'),
    ('--opt adamww', '--opt adamww'),
    ('--opt-kwargs foo=1', "'foo'"),
    ('--sched cos', '--sched cos'),
    ('--stop-epoch 3', '--stop-epoch 3 must lie between 1 and 2'),
    ('--eval-metric map', "loss, top1, top5, not 'map'"),
]


@pytest.mark.parametrize('flags, message', MISTAKES, ids=[flags for flags, _ in MISTAKES])
def test_mistake(flags, message, supervise, tmp_path, capsys):
    """One line that says what is wrong, and nothing written."""
    with pytest.raises((UserError, SystemExit)) as stopped:
        supervise(flags, tmp_path / 'output')
    if stopped.type is SystemExit:
        assert stopped.value.code == 2
        text, = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
    else:
        assert stopped.type.__name__ == 'UserError'
        text = str(stopped.value)
    assert message in text and '\n' not in text
    assert not (tmp_path / 'output').exists()


@pytest.mark.parametrize('flag', ['--pretrained-path', '--initial-checkpoint'])
def test_damaged_weights(flag, supervise, tmp_path):
    """A flipped bit, which PyTorch loads as if nothing were wrong."""
    path = tmp_path / 'weights.pth'
    torch.save(timm.create_model('test_vit', num_classes=2, img_size=32).state_dict(), path)
    flip_a_bit(path)
    with pytest.raises(UserError, match=f"{flag}: '{path}' is damaged: Bad CRC-32"):
        supervise(f'{flag} {path}', tmp_path / 'output')
    assert not (tmp_path / 'output').exists()


def test_mistake_as_a_user_sees_it(tmp_path):
    command = [sys.executable, str(SCRIPT), '--device', 'cpu', '--model', 'test_vit', '--data-dir', str(tmp_path / 'x')]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"train.py: error: --data-dir: there is no '{tmp_path}/x'."
    assert 'Traceback' not in result.stderr


def test_checkpoint_of_another_folder_does_not_overwrite_a_run(tmp_path):
    from training.errors import UserError
    from training.run_folder import find_checkpoint
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'last.pth.tar').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'b')

    def find(path, experiment):
        return find_checkpoint(argparse.Namespace(output=str(tmp_path), experiment=experiment, resume=str(path)))

    with pytest.raises(UserError, match='which holds another run'):
        find(tmp_path / 'a' / 'last.pth.tar', 'b')
    for path in ('b/last.pth.tar', 'link/last.pth.tar', 'a/../b/last.pth.tar'):
        assert find(tmp_path / path, 'b') == str(tmp_path / path)
    assert find(tmp_path / 'a' / 'last.pth.tar', 'new') == str(tmp_path / 'a' / 'last.pth.tar')
