"""Runs of the training script with --naflex-loader, on very wide and very tall images."""
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_processes
from safetensors.torch import load_file

import timm
from timm.data.naflex_dataset import NaFlexCollator
from timm.mim import create_mim
from timm.mim.masking import keyed_noise
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.data.datasets import open_data
from timm.mim.pretrain.data.loading import create_train_loader
from timm.mim.pretrain.data.naflex import NaFlexSampler, collate_sequences, images_in_budget
from timm.mim.pretrain.errors import UnreadableImages
from timm.mim.pretrain.flags.run_options import RunOptions
from timm.mim.pretrain.naflex_held_out import NaFlexHeldOutImages
from timm.mim.pretrain.naflex_update import naflex_parts

MODEL = '--device cpu --model test_vit --model-kwargs use_naflex=True --workers 0 --batch-size 4'
LENGTHS = '--naflex-loader --naflex-train-seq-lens 16 32 --naflex-max-seq-len 24'
MAE = '--mim mae --mim-kwargs decoder_dim=16 decoder_depth=1 decoder_heads=2'
FLAGS = f'{MODEL} {LENGTHS} --epochs 2 --val-interval 2 --lr 1e-3 --warmup-epochs 0 --experiment run'
CONFIG = dict(
    input_size=(3, 160, 160), patch_size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation='bicubic', mode='RGB')


def write_strips(folder, count, colours=(0, 256), seed=0):
    """Write images of which every second is wide and the others are tall, up to 12 : 1."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        length = int(30 * 2 ** rng.uniform(1.5, 3.6))
        size = (length, 30) if i % 2 else (30, length)
        coarse = rng.integers(*colours, (max(2, size[1] // 20), max(2, size[0] // 20), 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f'{i:02d}.png')


@pytest.fixture(scope='module')
def strips(tmp_path_factory):
    folder = tmp_path_factory.mktemp('strips')
    write_strips(folder, 17)  # one is held out
    return folder


@pytest.fixture(scope='module')
def pretrained(train, strips, tmp_path_factory):
    output = tmp_path_factory.mktemp('pretrained')
    train(f'{MAE} {FLAGS} --data-dir {strips} --output {output}', tiny=False)
    return output / 'run'


def test_from_strips_to_a_fine_tuned_model(pretrained, train, tmp_path):
    """The printed command fine-tunes the encoder with timm's own NaFlex loader."""
    encoder = load_file(pretrained / 'encoder.safetensors')
    for name, options in (('test_vit', dict(use_naflex=True, checkpoint_path=pretrained / 'encoder.safetensors')),
                          (f'local-dir:{pretrained}/encoder', dict(pretrained=True))):
        model = timm.create_model(name, num_classes=0, **options)
        assert all(torch.equal(value, encoder[key]) for key, value in model.state_dict().items())
    for split, count in (('train', 8), ('validation', 4)):
        for number, colours in enumerate([(0, 100), (150, 256)]):
            write_strips(tmp_path / 'labelled' / split / str(number), count, colours, seed=number)
    log = (pretrained / 'train.log').read_text()
    command = re.search(r'fine-tune it:\n +python train.py (.*)', log).group(1)
    assert '--naflex-loader --naflex-train-seq-lens 16 32 --naflex-max-seq-len 24' in command
    command = command.replace('LABELLED_FOLDER', str(tmp_path / 'labelled')).replace('classes N', 'classes 2')
    train(f'{command} --output {tmp_path} --experiment tuned --device cpu --workers 0 --batch-size 8 --epochs 4 '
          '--lr 2e-3 --warmup-epochs 0 --mixup 0 --cutmix 0 --smoothing 0 --no-aug', tiny=False)
    rows = (tmp_path / 'tuned' / 'summary.csv').read_text().splitlines()
    accuracy = float(rows[-1].split(',')[rows[0].split(',').index('eval_top1')])
    assert accuracy > 80


def test_what_a_run_records(pretrained):
    lines = [json.loads(line) for line in (pretrained / 'metrics.jsonl').read_text().splitlines()]
    assert all(0 < line['padding'] < 0.6 for line in lines if 'padding' in line) and 'padding' in lines[0]
    summary = json.loads((pretrained / 'summary.json').read_text())
    assert summary['last']['loss'] > 0 and 0.9 < summary['last']['loss_of_patch_mean'] < 1
    with Image.open(pretrained / 'reconstructions' / 'epoch-0001.png') as picture:
        assert 3 * 192 < picture.width  # three columns
    assert 'images of any shape with 3 channel(s), in up to 16, 32 patches' in (pretrained / 'train.log').read_text()


def test_resumed_within_an_epoch(pretrained, train, strips, tmp_path, monkeypatch):
    flags = f'{MAE} {FLAGS} --data-dir {strips} --output {tmp_path} --recovery-interval 2'
    from timm.mim.pretrain.trainer import Trainer
    whole = Trainer._train_update

    def killed(trainer, batches):
        if trainer.update == 3:
            raise KeyboardInterrupt
        whole(trainer, batches)
    monkeypatch.setattr(Trainer, '_train_update', killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(flags, tiny=False)
    monkeypatch.undo()
    train(f'{flags} --resume auto', tiny=False)
    expected, resumed = (
        torch.load(folder / 'last.pth.tar', weights_only=False) for folder in (pretrained, tmp_path / 'run'))
    assert all(torch.equal(value, resumed['state_dict'][key]) for key, value in expected['state_dict'].items())


def test_simmim_and_probes(train, strips, tmp_path):
    """Held-out errors are in pixels, and the baselines fill each image in its own shape."""
    for number, colours in enumerate([(0, 100), (150, 256)]):
        write_strips(tmp_path / 'labelled' / str(number), 6, colours, seed=number)
    train(f'--mim simmim {FLAGS} --data-dir {strips} --output {tmp_path} --mim-probe-dir {tmp_path}/labelled '
          '--mim-probe-pool avg --naflex-loss-scale linear --grad-accum-steps 2', tiny=False)
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    baselines = summary['baselines']
    assert 0 < baselines['diffusion_fill'] < baselines['mean_of_visible'] < 1 and summary['last']['masked_l1'] < 2
    assert summary['probes'].keys() == {'knn_top1', 'linear_top1'}
    assert summary['probe_baselines']['pixels']['knn_top1'] == 100


def test_two_processes_train_as_one(train, strips, tmp_path):
    """Two processes with half the budget see the same batches with the same masks, and every masked patch counts the
    same: gradients are equal but for the order of additions. With --fsdp to the last bit.
    """
    flags = (f'{MAE} --naflex-loader --naflex-train-seq-lens 12 --naflex-max-seq-len 24 --epochs 1 --lr 0.5 '
             f'--opt momentum --momentum 0 --clip-grad 1 --experiment run --data-dir {strips} --warmup-epochs 0')
    train(f'{MODEL} {flags} --output {tmp_path}/one --batch-size 8', tiny=False)
    for name, more in (('two', ''), ('sharded', '--fsdp')):
        run_processes(2, f'{MODEL} {flags} --output {tmp_path}/{name} {more}', complete=True)
    one, two, sharded = (
        torch.load(tmp_path / name / 'run' / 'last.pth.tar', weights_only=False)['state_dict']
        for name in ('one', 'two', 'sharded'))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-5, rtol=0, msg=key)
    assert all(torch.equal(value, sharded[key]) for key, value in two.items())


def loader_of(folder, lengths=(16, 32), rank=0, world_size=1, **options):
    options = RunOptions(
        data_dir=str(folder), mim='mae', workers=0, batch_size=4, naflex_loader=True, naflex_train_seq_lens=[*lengths],
        **options)
    return create_train_loader(
        open_data(options, 'RGB').train, options, CONFIG, torch.device('cpu'), rank, world_size)


def test_an_unreadable_image_changes_nothing_else(strips, tmp_path):
    """Other images keep their positions, so their pixels and masks stay the same, and no batch shrinks."""
    write_strips(tmp_path, 20)
    before = list(loader_of(tmp_path))
    (tmp_path / '07.png').write_bytes(b'nothing')
    after = list(loader_of(tmp_path))
    replaced = 0
    for (images, index), (others, other) in zip(before, after, strict=True):
        assert images['patches'].shape == others['patches'].shape
        for i in range(len(index)):
            if other[i] < 0:
                replaced += 1
            else:
                assert index[i] == other[i] and torch.equal(images['patches'][i], others['patches'][i])
    assert replaced == 1


def test_too_many_unreadable_images_end_the_run(train, tmp_path):
    write_strips(tmp_path / 'images', 12)
    for i in range(6):
        (tmp_path / 'images' / f'{i:02d}.png').write_bytes(b'nothing')
    with pytest.raises((SystemExit, UnreadableImages)):
        train(f'{MAE} {FLAGS} --data-dir {tmp_path}/images --output {tmp_path}', tiny=False)


def test_images_of_a_few_pixels(tmp_path):
    """timm refuses to enlarge an image more than a hundred times."""
    write_strips(tmp_path, 18)
    Image.new('RGB', (2, 1), 'red').save(tmp_path / 'a.png')
    Image.new('RGB', (1, 3), 'red').save(tmp_path / 'b.png')
    assert all((index >= 0).all() for _, index in loader_of(tmp_path, scale=[0.08, 1.]))


def test_a_sequence_that_is_too_long_is_an_error():
    """timm's collator would cut it."""
    item = dict(patches=torch.zeros(20, 768), patch_coord=torch.zeros(20, 2).long(), patch_valid=torch.ones(20).bool())
    assert NaFlexCollator(16)([(item, 0)])[0]['patches'].shape == (1, 16, 768)
    with pytest.raises(ValueError, match='^An image has 20 patches, more than the 16 of its batch, and would be cut.$'):
        collate_sequences([(item, 0)], 16)


def test_the_budget():
    lengths = (128, 256, 576, 784, 1024)
    assert [images_in_budget(32, length, 1024) for length in lengths] == [256, 128, 56, 40, 32]  # as in timm
    assert [images_in_budget(4, length, 32) for length in (16, 32)] == [8, 4]  # timm: 8 and 1


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_batches_of_an_epoch(world_size):
    samplers = [NaFlexSampler(101, [16, 32], 2, seed=5, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = {}
    for epoch in range(2):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [list(sampler) for sampler in samplers]
        for together in zip(*batches, strict=True):  # all processes have batches of the same length and size
            assert len({(key.seq_len, len(key.images)) for key in together}) == 1
        keys = [image for rank in batches for key in rank for image in key.images]
        assert len({key.position for key in keys}) == len({key.index for key in keys}) == len(keys)
        assert 101 - len(keys) < world_size and len(keys) == samplers[0].images_per_epoch
        seen[epoch] = [key.index for key in sorted(keys, key=lambda key: key.position)]
        samplers[0].set_epoch(epoch, first_batch=2)
        assert list(samplers[0]) == batches[0][2:]
    assert seen[0] != seen[1]
    lengths = [key.seq_len for key in batches[0]]
    assert set(lengths) == {16, 32}


def naflex_batch(grids, length):
    place = torch.arange(length)
    generator = torch.Generator().manual_seed(len(grids))
    return dict(
        patches=torch.randn(len(grids), length, 768, generator=generator),
        patch_coord=torch.stack([torch.stack([place // width, place % width], dim=1) for _, width in grids]),
        patch_valid=torch.stack([place < height * width for height, width in grids]),
    )


@pytest.mark.parametrize('name, options', [
    ('simmim', {}), ('mae', dict(decoder_dim=16, decoder_depth=1, decoder_heads=2))])
def test_the_held_out_error_in_closed_form(name, options):
    """The mean over all masked patches of all images and masks, whatever the batches."""
    method = create_mim(name, 'test_vit', model_kwargs=dict(use_naflex=True), **options).eval()
    images = naflex_batch([(1, 3), (4, 6), (2, 2)], 30)
    held_out = NaFlexHeldOutImages(images, torch.arange(3), 3, torch.device('cpu'), batch_size=5)
    errors, of_zeros, of_means = [], [], []
    for i in range(3):
        repeated = {key: value[i].expand(11, *value.shape[1:]) for key, value in images.items()}
        noise = keyed_noise(0, 0, torch.arange(11 * i, 11 * i + 11), 30)  # 11 masks of each image, 32 at least
        with torch.no_grad():
            output = method(repeated, noise=noise)
        for prediction, target, mask in zip(output.prediction, output.target, output.mask):
            masked = mask if name == 'simmim' else slice(int(mask.sum()))
            difference = (prediction - target)[masked]
            errors.append(difference.abs() if name == 'simmim' else difference.square())
            of_zeros.append(target[masked].square())
            pixels = images['patches'][i].unflatten(1, (256, 3))
            visible = pixels[images['patch_valid'][i] & ~mask]
            of_means.append((pixels[mask] - visible.mean((0, 1))).abs())
    measured = held_out.measure(method, nullcontext)
    expected = torch.cat(errors).double().mean().item()
    assert measured['masked_l1' if name == 'simmim' else 'loss'] == pytest.approx(expected, rel=1e-5)
    if name == 'simmim':
        expected = torch.cat(of_means).double().mean().item()
        assert held_out.baselines(method, nullcontext)['mean_of_visible'] == pytest.approx(expected, rel=1e-5)
    else:
        assert measured['loss_of_patch_mean'] == pytest.approx(torch.cat(of_zeros).double().mean().item(), rel=1e-5)


def test_held_out_images_without_a_masked_patch_are_refused():
    method = create_mim('mae', 'test_vit', model_kwargs=dict(use_naflex=True), decoder_depth=1)
    images = naflex_batch([(1, 1), (1, 1)], 4)  # of one patch each, which stays visible
    held_out = NaFlexHeldOutImages(images, torch.arange(2), 2, torch.device('cpu'))
    with pytest.raises(UserError, match='no patch of the held-out images is masked'):
        held_out.measure(method, nullcontext)


def test_positions_of_images_over_processes_and_batches(monkeypatch):
    """Masks are keyed by the position in the global batch: those of a batch lie behind all of the one before."""
    method = create_mim('simmim', 'test_vit', model_kwargs=dict(use_naflex=True))
    monkeypatch.setattr('timm.mim.pretrain.naflex_update.dist.all_reduce', lambda total: total.mul_(2))
    batches = [(naflex_batch([(2, 3)] * count, 6), torch.zeros(count)) for count in (4, 2)]
    for rank, first in enumerate(([0, 8], [4, 10])):
        parts = naflex_parts(iter(batches), 2, method, seed=1, update=3, rank=rank, world_size=2)
        assert [part.first for part in parts] == first
        for part in parts:
            positions = torch.arange(part.first, part.first + len(part.noise))
            assert torch.equal(part.noise, keyed_noise(1, 3, positions, 6))
        # the mean over both processes of the sum over batches
        assert sum(part.weight for part in parts).item() == pytest.approx(1)


def test_all_masked_patches_of_an_update_weigh_the_same():
    """Batches of different lengths, over two accumulated batches: the sum of the weighted losses is the mean over all
    masked patches.
    """
    method = create_mim('mae', 'test_vit', model_kwargs=dict(use_naflex=True), decoder_dim=16, decoder_depth=1,
                        decoder_heads=2).eval()
    batches = [(naflex_batch([grid] * count, length), torch.zeros(count))
               for grid, count, length in (((1, 3), 4, 5), ((4, 6), 2, 30))]
    parts = naflex_parts(iter(batches), 2, method, seed=1, update=3, reference_size=2, loss_scale='linear')
    assert [part.first for part in parts] == [0, 4] and [part.scale for part in parts] == [2., 1.]
    total = patches = 0
    with torch.no_grad():
        outputs = [method(part.images, noise=part.noise) for part in parts]
    for output in outputs:
        total, patches = total + output.loss * output.mask.sum(), patches + output.mask.sum()
    weighted = sum(output.loss * part.weight for output, part in zip(outputs, parts))
    torch.testing.assert_close(weighted, total / patches, rtol=1e-6, atol=0)
    assert parts[0].weight == pytest.approx(8 / 44) and parts[1].weight == pytest.approx(36 / 44)


@pytest.mark.parametrize('flags, message', [
    ('--mim ijepa', '--naflex-loader does not work with --mim ijepa: the blocks of I-JEPA have one shape'),
    ('--mim mae --plan 1', '--plan computes what images of one size cost, and does not work with --naflex-loader'),
    ('--mim spark', '--naflex-loader does not work with --mim spark: it works on images of one size'),
    ('--mim mae --img-size 64', '--img-size has no meaning with --naflex-loader: images keep their shape'),
    ('--mim mae --crop-pct 0.9', '--crop-pct has no meaning with --naflex-loader: held-out images are not cropped'),
    ('--mim mae --train-crop-mode rkrc', '--train-crop-mode has no meaning with --naflex-loader'),
    ('--mim mae --naflex-patch-sizes 8 16', '--naflex-patch-sizes has no meaning with --mim: the methods predict'),
    ('--mim mae --naflex-patchify-channels-first', '--naflex-patchify-channels-first has no meaning with --mim'),
    ('--mim mae --naflex-train-seq-lens 0', '--naflex-train-seq-lens 0 must be 1 or more'),
    ('--mim mae --naflex-loss-scale cubic', "--naflex-loss-scale: there is no 'cubic'; choose none, sqrt, linear"),
    ('--mim simmim --mim-kwargs target=hog', "--naflex-loader: .*target 'hog' needs images of one size"),
    ('--mim mae --mim-kwargs masking=block', "--naflex-loader: .*masking 'block' draws blocks on one grid"),
])
def test_refusals(flags, message, train, strips, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train(f'{MODEL} {LENGTHS} --data-dir {strips} --output {tmp_path} {flags}', tiny=False)
    assert error.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_a_model_that_is_no_naflexvit(train, strips, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(f'{MODEL} {LENGTHS} {MAE} --model-kwargs --data-dir {strips} --output {tmp_path}', tiny=False)
    assert 'the model is a VisionTransformer, not a NaFlexVit' in capsys.readouterr().err


def test_flags_without_the_loader(train, strips, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(f'{MODEL} {MAE} --naflex-max-seq-len 100 --data-dir {strips} --output {tmp_path}', tiny=False)
    assert '--naflex-max-seq-len is for --naflex-loader, which is not given' in capsys.readouterr().err
