"""What a finished run leaves behind."""
import csv
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import write_images

import timm
from timm.mim import IJEPA
from timm.mim.pretrain.task import create_method
from timm.mim.pretrain.options import resolve_options
from timm.mim.pretrain.trainer import Trainer


def rows(folder):
    with open(folder / 'summary.csv') as f:
        return list(csv.DictReader(f))


def test_run_folder(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert {'args.yaml', 'summary.csv', 'summary.json', 'last.pth.tar', 'model_best.pth.tar', 'encoder.safetensors',
            'reconstructions'} <= names
    assert not [name for name in names if 'tmp' in name]
    pictures = sorted(path.name for path in (finished_run / 'reconstructions').iterdir())
    assert pictures == [f'epoch-{epoch:04d}.png' for epoch in range(6)]


def test_summary(finished_run):
    table = rows(finished_run)
    assert [int(row['epoch']) for row in table] == list(range(6))
    errors = [float(row['eval_masked_l1']) for row in table]
    results = json.loads((finished_run / 'summary.json').read_text())
    assert results['best'] == min(errors) and results['metric'] == 'masked_l1'
    assert results['best_epoch'] == errors.index(min(errors))
    assert results['last'] == {'masked_l1': errors[-1]}
    assert set(results['baselines']) == {'mean_of_visible', 'diffusion_fill'}
    for name, value in results['baselines'].items():
        assert {float(row[f'eval_{name}']) for row in table} == {value}  # same masks in every epoch


def test_loss_falls(finished_run):
    table = rows(finished_run)
    assert float(table[-1]['train_loss']) < 0.95 * float(table[0]['train_loss'])
    # better than one colour, which a model that knows the masked input and nothing more could give
    assert float(table[-1]['eval_masked_l1']) < float(table[0]['eval_mean_of_visible'])


def test_encoder_loads_as_printed(finished_run):
    lines = json.loads((finished_run / 'summary.json').read_text())['load']
    assert len(lines) == 2
    namespace = {}
    exec('\n'.join(lines), namespace)
    encoder = namespace['encoder'].eval()

    best = torch.load(finished_run / 'model_best.pth.tar', weights_only=False)
    expected = timm.create_model('test_vit', num_classes=0, img_size=64)
    expected.load_state_dict(best['state_dict'], strict=True)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder(x), expected.eval()(x))
    # trained, and nothing of the method in it
    initial = timm.create_model('test_vit', num_classes=0, img_size=64).state_dict()
    weights = load_file(finished_run / 'encoder.safetensors')
    assert weights.keys() == initial.keys()
    assert not torch.equal(weights['blocks.0.attn.qkv.weight'], initial['blocks.0.attn.qkv.weight'])


def test_checkpoint_holds_a_plain_model(finished_run):
    checkpoint = torch.load(finished_run / 'last.pth.tar', weights_only=False)
    assert checkpoint['state_dict'].keys() == timm.create_model('test_vit', num_classes=0).state_dict().keys()
    assert 'mask_token' in checkpoint['task_state']['method']
    assert not [name for name in checkpoint['task_state']['method'] if name.startswith('backbone')]
    assert checkpoint['epoch'] == 5


def test_picture_shows_image_mask_and_reconstruction(finished_run):
    picture = Image.open(finished_run / 'reconstructions' / 'epoch-0005.png')
    # one held-out image of 64 px, three times enlarged, in three columns
    assert picture.size == (3 * (192 + 8) + 8, 2 * 18 + 8 + 192 + 8)
    left, top, cell = 8, 2 * 18 + 8, 192 + 8
    columns = [picture.crop((left + i * cell, top, left + i * cell + 192, top + 192)).resize((64, 64), 0)
               for i in range(3)]
    original, masked, pasted = [torch.from_numpy(np.array(column)) for column in columns]
    hidden = (masked == 128).all(-1)
    assert hidden.float().mean() == pytest.approx(10 / 16)  # 0.6 of 16 units, rounded up
    assert torch.equal(masked[~hidden], original[~hidden])
    assert torch.equal(pasted[~hidden], original[~hidden])
    # what was predicted stands in the holes: neither the original nor the grey that marks them
    assert not torch.equal(pasted[hidden], original[hidden])
    assert not torch.equal(pasted[hidden], masked[hidden])


def test_options_are_kept_and_run_again(finished_run, script):
    options = yaml.safe_load((finished_run / 'args.yaml').read_text())
    assert options['weight_decay'] == 0.05 and options['opt_betas'] == [0.9, 0.999] and options['clip_grad'] == 5.0
    assert options['scale'] == [0.67, 1.0] and options['mask_ratio'] == 0.6 and options['epochs'] == 6
    args, _ = script._parse_args(['-c', str(finished_run / 'args.yaml'), '--epochs', '9'])
    given = {k: v for k, v in options.items() if v not in (None, False, {}, []) and k not in ('img_size', 'mask_unit')}
    assert {k: getattr(args, k) for k in given} == {**given, 'epochs': 9}
    assert args.img_size == [64, 64] and args.mask_unit == [16]


def test_what_is_printed(train, images, tmp_path, capsys):
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1')
    text = capsys.readouterr().err
    for part in ('defaults of simmim: mask_ratio 0.6, opt adamw, opt_betas 0.9 0.999, weight_decay 0.05',
                 f'{images}: 1 of its 16 images held out', 'step 3/3', 'images/s', 'mean of the visible pixels',
                 'diffusion of the visible pixels', str(tmp_path / 'run'), 'import timm',
                 f"timm.create_model('test_vit', num_classes=0, img_size=(64, 64), checkpoint_path='{tmp_path}/run/"
                 f"encoder.safetensors')"):
        assert part in text, part
    assert text.count('import timm') == 1


@pytest.mark.parametrize('flags', [
    '--amp', '--amp --fast-norm', '--channels-last', '--grad-checkpointing', '--torchcompile eager', '--sched none',
    '--aa rand-m5-inc1', '--img-size 64 48', '--opt sgd --momentum 0.5', '--clip-grad 0', '--workers 2',
    '--model swin_tiny_patch4_window7_224 --model-kwargs depths=(1,1) num_heads=(1,2) embed_dim=8 window_size=2',
])
def test_flags_work(flags, train, images, tmp_path):
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 {flags}')
    assert float(rows(tmp_path / 'run')[0]['train_loss']) < 2
    lines = json.loads((tmp_path / 'run' / 'summary.json').read_text())['load']
    exec('\n'.join(lines), {})


@pytest.mark.parametrize('mode, channels', [('L', 1), ('RGBA', 4), ('LA', 2)])
def test_channels(mode, channels, train, tmp_path):
    write_images(tmp_path / 'images' / 'a' / 'b', 4, mode)
    write_images(tmp_path / 'images' / 'c', 4, mode)
    train(f'--data-dir {tmp_path}/images --output {tmp_path} --experiment run --epochs 1 --in-chans {channels}')
    lines = json.loads((tmp_path / 'run' / 'summary.json').read_text())['load']
    assert f'in_chans={channels}' in lines[1]
    namespace = {}
    exec('\n'.join(lines), namespace)
    assert namespace['encoder'].patch_embed.proj.weight.shape[1] == channels


def test_moving_average_is_what_counts(train, images, tmp_path, monkeypatch):
    """The average starts with the weights of the first update, as timm's does. After each further one it is half of
    what it was, and half of the weights. It is the encoder.
    """
    weights, train_update = [], Trainer._train_update

    def recorded(trainer, batches):
        weight = trainer.task.get_method().backbone.blocks[0].mlp.fc1.weight
        train_update(trainer, batches)
        weights.append(weight.detach().clone())

    monkeypatch.setattr(Trainer, '_train_update', recorded)
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --epoch-repeats 2 --lr 1e-2 '
          '--model-ema --model-ema-decay 0.5')
    average = weights[0]
    for weight in weights[1:]:
        average = (average + weight) / 2
    checkpoint = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)
    name = 'blocks.0.mlp.fc1.weight'
    assert len(weights) > 3 and not torch.equal(average, weights[-1])
    torch.testing.assert_close(checkpoint['state_dict_ema'][name], average, rtol=1e-6, atol=1e-7)  # float32
    assert torch.equal(checkpoint['state_dict'][name], weights[-1])
    encoder = load_file(tmp_path / 'run' / 'encoder.safetensors')
    assert torch.equal(encoder[name], checkpoint['state_dict_ema'][name])


def test_the_target_encoder_gets_the_share_of_the_run_that_is_done(train, images, tmp_path, monkeypatch):
    shares = []
    monkeypatch.setattr(IJEPA, 'update_target', lambda method, progress: shares.append(progress))
    train(f'--mim ijepa --mim-kwargs num_targets=2 --data-dir {images} --output {tmp_path} --experiment run --epochs 2')
    assert len(shares) == 6  # two epochs of three full batches of 4
    assert shares == [number / len(shares) for number in range(len(shares))]


def test_sample_photographs(train, tmp_path, capsys):
    pytest.importorskip('skimage')
    pytest.importorskip('sklearn')
    train(f'--output {tmp_path} --experiment run --epochs 1')
    said = capsys.readouterr().err
    assert 'samples/photographs: 12 images to train on, 2 more held out (chelsea.png, china.jpg)' in said
    results = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert results['held_out_images'] == ['chelsea.png', 'china.jpg']


def test_milestones_are_kept(train, images, tmp_path):
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 3 --val-interval 3 --save-epochs 1')
    assert [row['epoch'] for row in rows(tmp_path / 'run')] == ['0', '2']
    assert torch.load(tmp_path / 'run' / 'milestone-1.pth.tar', weights_only=False)['epoch'] == 0


def test_loss_that_is_not_finite_stops_the_run(train, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 9 --opt sgd --lr 1e30 --clip-grad 0')
    assert stopped.value.code == 1
    assert 'Lower --lr' in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'run' / 'encoder.safetensors').exists()


@pytest.mark.parametrize('given, rate', [
    (dict(), 0.0), (dict(drop_path=0.2), 0.2), (dict(model_kwargs=dict(drop_path_rate=0.3)), 0.3)])
def test_stochastic_depth_reaches_the_model(given, rate):
    options, _ = resolve_options(Namespace(mim='simmim', device='cpu', model='test_vit', **given))
    method, _ = create_method(options)
    assert getattr(method.backbone.blocks[-1].drop_path1, 'drop_prob', 0.0) == pytest.approx(rate)
