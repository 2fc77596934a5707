"""Runs of supervised training from end to end: what they learn, what they leave, and that each kind of run trains."""
import csv
import os
import subprocess
import sys

import pytest
import torch
import yaml
from tiny_runs import SCRIPT, SUPERVISED, environment

import timm


@pytest.fixture(scope='module')
def finished(supervise, tmp_path_factory):
    return supervise('--epochs 3 --val-interval 1 --model-ema --model-ema-decay 0.5 --checkpoint-hist 2',
                     tmp_path_factory.mktemp('finished'))


def summary(folder):
    with open(folder / 'summary.csv') as f:
        return list(csv.DictReader(f))


def test_what_a_run_leaves(finished):
    assert {file.name for file in finished.iterdir()} == {
        'args.yaml', 'summary.csv', 'last.pth.tar', 'model_best.pth.tar', 'checkpoint-0.pth.tar',
        'checkpoint-1.pth.tar'}
    rows = summary(finished)
    assert list(rows[0]) == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
    assert [row['epoch'] for row in rows] == ['0', '1', '2']
    assert float(rows[-1]['eval_top1']) == 100 and float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])
    assert yaml.safe_load((finished / 'args.yaml').read_text())['model_ema_decay'] == 0.5


def test_checkpoint_is_one_of_timm(finished):
    model = timm.create_model('test_vit', num_classes=2, img_size=32, checkpoint_path=finished / 'model_best.pth.tar')
    average = torch.load(finished / 'model_best.pth.tar', weights_only=False)['state_dict_ema']
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


def test_schedule_over_epochs(supervise, tmp_path):
    """Warm-up, and then half a cosine: the rates of the summary, which are those of the epoch that follows."""
    rows = summary(supervise('--epochs 5 --val-interval 1 --warmup-epochs 2 --warmup-lr 0 --lr 1', tmp_path))
    cosine = [(1 + torch.cos(torch.tensor(torch.pi * epoch / 5)).item()) / 2 for epoch in range(5)]
    assert [float(row['lr']) for row in rows] == pytest.approx([0, 0.5, *cosine[2:]], abs=1e-6)


@pytest.mark.parametrize('flags, rate', [
    ('--opt sgd', 0.1 * 4 / 256),
    ('--opt sgd --grad-accum-steps 2 --lr-base 0.2 --lr-base-size 128', 0.2 * 8 / 128),
    ('--opt adamw', 0.1 * (4 / 256) ** 0.5),
    ('--opt sgd --lr-base-scale sqrt', 0.1 * (4 / 256) ** 0.5),
    ('--opt sgd --train-img-sizes 32 64 --train-batch-sizes 4 2 --model test_resnet', 0.1 * 3 / 256),
])
def test_learning_rate_of_a_batch(flags, rate, supervise, tmp_path):
    rows = summary(supervise(f'--epochs 1 --sched none --lr 0 {flags}', tmp_path))
    assert float(rows[0]['lr']) == pytest.approx(rate, rel=1e-6)


NAFLEX = ('--model naflexvit_base_patch16_gap --naflex-loader --naflex-train-seq-lens 4 9 --naflex-max-seq-len 9 '
          '--model-kwargs depth=1 embed_dim=32 num_heads=2')
KINDS = [
    '--mixup 0.4 --cutmix 1.0 --mixup-off-epoch 1',
    '--mixup 0.4 --cutmix-minmax 0.2 0.8 --mixup-mode elem --no-prefetcher',
    '--amp --amp-dtype bfloat16 --fast-norm',
    '--model-dtype bfloat16',
    '--model test_resnet --channels-last --drop-block 0.1',
    '--model test_efficientnet --bn-momentum 0.2 --bn-eps 1e-3 --dist-bn broadcast',
    '--torchscript --model test_resnet --fuser te',
    '--model-ema --model-ema-force-cpu --model-ema-warmup',
    '--layer-decay 0.7 --drop-path 0.2 --drop 0.1 --grad-checkpointing --gp avg --clip-grad 1 --clip-mode agc',
    '--sched plateau --patience-epochs 1',
    '--sched wsd --sched-on-updates --lr-decay-fn linear --opt lookahead_adamw --opt-betas 0.9 0.99 --opt-eps 1e-7',
    '--aug-splits 2 --jsd-loss --resplit --reprob 0.3 --split-bn --model test_resnet',
    '--loss bce --bce-sum --bce-target-thresh 0.2 --smoothing 0',
    '--train-img-sizes 32 64 --train-size-schedule progressive --train-batches-per-epoch 2 --model test_resnet',
    '--train-img-sizes 32 64 --train-batch-sizes 4 2 --model-kwargs dynamic_img_size=True '
    '--variable-batch-loss-scale linear',
    f'{NAFLEX} --mixup 0.3',
    f'{NAFLEX} enable_patch_interpolator=True --naflex-patch-sizes 8 16 --naflex-patch-size-probs 0.5 0.5',
    f'{NAFLEX} --no-prefetcher --naflex-loss-scale sqrt',
    f'{NAFLEX} --in-chans 1',
    '--in-chans 1 --no-prefetcher',
    '--use-multi-epochs-loader --workers 1 --worker-seeding part',
    '--recovery-interval 2 --save-images --synchronize-step',
    '--aa rand-m9-mstd0.5-inc1 --reprob 0.25 --remode rand --vflip 0.2 --grayscale-prob 0.2 --gaussian-blur-prob 0.2 '
    '--color-jitter-prob 0.5 --train-crop-mode rkrc',
    "--val-split ''",
]


@pytest.mark.parametrize('flags', KINDS)
def test_kind_of_run(flags, supervise, tmp_path):
    run = supervise(flags, tmp_path)
    rows = summary(run)
    assert all(0 < float(row['train_loss']) < 10 for row in rows)
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=False)
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())
    assert ('eval_top1' in rows[0]) == ('--val-split' not in flags)


@pytest.mark.skipif(sys.platform == 'win32', reason='torch.compile needs a POSIX system')
def test_compiled(supervise, tmp_path):
    """Names in a checkpoint do not show that the model was compiled."""
    run = supervise('--torchcompile eager --epochs 1 --model-ema', tmp_path)
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=False)
    names = timm.create_model('test_vit').state_dict().keys()
    assert checkpoint['state_dict'].keys() == names == checkpoint['state_dict_ema'].keys()


def test_random_seed(supervise, tmp_path):
    rows = [summary(supervise(f'--seed {seed}', tmp_path / str(i)))[-1] for i, seed in enumerate((1, 1, 2))]
    assert rows[0] == rows[1] != rows[2]


def test_resumed_run_goes_on(supervise, tmp_path):
    """The optimizer, the schedule and the history go on; with --no-resume-opt the optimizer begins anew."""
    whole = summary(supervise('--epochs 4 --val-interval 1', tmp_path / 'whole'))
    supervise('--epochs 4 --val-interval 1 --stop-epoch 2', tmp_path / 'parts')
    run = supervise('--epochs 4 --val-interval 1 --resume auto', tmp_path / 'parts')
    rows = summary(run)
    assert [(row['epoch'], row['lr']) for row in rows] == [(row['epoch'], row['lr']) for row in whole]
    assert rows[:2] == whole[:2]
    state = torch.load(run / 'last.pth.tar', weights_only=False)['optimizer']['state'][0]
    assert state['step'] == 4 * 4
    fresh = supervise(f'--epochs 5 --resume {run}/last.pth.tar --no-resume-opt', tmp_path / 'fresh')
    state = torch.load(fresh / 'last.pth.tar', weights_only=False)['optimizer']['state'][0]
    assert state['step'] == 4


def test_two_processes(labelled, tmp_path):
    """Two processes train one model: on half the batches each, with all images counted in the evaluation."""
    flags = SUPERVISED.replace('test_vit', 'test_resnet').split() + [
        '--data-dir', str(labelled), '--output', str(tmp_path), '--experiment', 'run', '--grad-accum-steps', '2',
        '--batch-size', '2', '--model-ema']
    port = str(29500 + os.getpid() % 500)
    runs = [subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE='2', RANK=str(r), LOCAL_RANK=str(r)),
    ) for r in range(2)]
    texts = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], texts
    assert 'Training with 2 process(es)' in texts[0] and '[   2/2]  Loss' in texts[0] and 'Loss' not in texts[1]
    row, = summary(tmp_path / 'run')
    assert float(row['eval_top1']) * 8 / 100 % 1 == 0  # of eight images
