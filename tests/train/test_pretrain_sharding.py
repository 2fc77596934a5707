"""Models sharded over processes (FSDP2)."""
import json
import shutil

import pytest
import torch
from processes import run_processes
from run_folders import equal, load
from tiny_runs import write_images

import timm
from timm.mim import create_mim
from timm.mim.pretrain.sharding import repeated_blocks
from timm.mim.pretrain.validate import evaluate

# Momentum, so that the state of the optimizer counts; plain sums, so that weights differ by rounding alone.
FLAGS = (
    '--mim ijepa --mim-kwargs predictor_depth=2 predictor_dim=48 num_targets=2 --opt momentum '
    '--momentum 0.9 --lr 0.5 --clip-grad 1 --model-ema --model-ema-decay 0.5 --epochs 2 --experiment run'
)
SHARDED = '--fsdp --batch-size 2 --grad-accum-steps 2 --stop-epoch 1'


def state_of(folder):
    checkpoint = load(next(folder.glob('last.*')))
    parts = [checkpoint['state_dict'], checkpoint['task_state']['method'], checkpoint['state_dict_ema']]
    momenta = {str(n): state['momentum_buffer'] for n, state in checkpoint['optimizer']['state'].items()}
    return [*parts, momenta]


def assert_close(folder, expected):
    for part, expected_part in zip(state_of(folder), state_of(expected), strict=True):
        assert part.keys() == expected_part.keys()
        for name, value in expected_part.items():
            assert type(part[name]) is torch.Tensor
            torch.testing.assert_close(part[name], value, atol=3e-5, rtol=0, msg=name)


@pytest.fixture(scope='module')
def flags(images):
    return f'--data-dir {images} {FLAGS}'


@pytest.fixture(scope='module')
def single(train, flags, tmp_path_factory):
    output = tmp_path_factory.mktemp('single')
    train(f'{flags} --output {output} --batch-size 8')
    return output / 'run'


@pytest.fixture(scope='module')
def sharded(flags, tmp_path_factory):
    """A sharded run of one epoch."""
    output = tmp_path_factory.mktemp('sharded')
    run_processes(2, f'{flags} --output {output} {SHARDED}')
    return output / 'run'


def test_sharded_run_goes_on_without_shards(train, flags, single, sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / 'run')
    train(f'{flags} --output {tmp_path} --batch-size 8 --resume auto')
    assert_close(tmp_path / 'run', single)


def test_folder_of_two_processes_goes_on_with_one(train, flags, single, sharded, tmp_path):
    """The folder holds what the file does, bit for bit."""
    run_processes(2, f'{flags} --output {tmp_path} {SHARDED} --checkpoint-format folder')
    folder = tmp_path / 'run' / 'last.dcp'
    assert {path.name for path in folder.iterdir()} == {'.metadata', '__0_0.distcp', '__1_0.distcp', 'content.pt'}
    sizes = [(folder / f'__{rank}_0.distcp').stat().st_size for rank in range(2)]
    assert max(sizes) < 1.1 * min(sizes)  # each process writes its share
    file, folder = load(sharded / 'last.pth.tar'), load(folder)
    for part in ('state_dict', 'task_state', 'state_dict_ema', 'task_state_ema', 'optimizer', 'run'):
        assert equal(file[part], folder[part]), part
    assert (sharded / 'encoder.safetensors').read_bytes() == (tmp_path / 'run' / 'encoder.safetensors').read_bytes()
    train(f'{flags} --output {tmp_path} --batch-size 8 --resume auto')
    assert_close(tmp_path / 'run', single)


def test_folder_of_one_process_goes_on_with_four(train, flags, single, tmp_path):
    """Each of them reads its own part."""
    folder = '--checkpoint-format folder'
    train(f'{flags} --output {tmp_path} --batch-size 8 --stop-epoch 1 {folder}')
    run_processes(4, f'{flags} --output {tmp_path} --fsdp --batch-size 2 --resume auto {folder}')
    assert_close(tmp_path / 'run', single)


def test_run_goes_on_with_shards(train, flags, single, tmp_path):
    train(f'{flags} --output {tmp_path} --batch-size 8 --stop-epoch 1')
    for number in range(2):
        write_images(tmp_path / 'labelled' / str(number), 11, seed=number)
    probes = f'--mim-probe-dir {tmp_path}/labelled --mim-probe-layers 2 last --mim-probe knn linear attentive'
    run_processes(2, f'{flags} --output {tmp_path} --fsdp --batch-size 4 --resume auto {probes}')
    assert_close(tmp_path / 'run', single)
    results = evaluate(dict(
        mim='ijepa', checkpoint=tmp_path / 'run' / 'last.pth.tar', mim_probe_dir=f'{tmp_path}/labelled',
        mim_probe=['knn', 'linear', 'attentive'], mim_probe_layers=['2', 'last'], workers=0))
    probed = json.loads((tmp_path / 'run' / 'summary.json').read_text())['probes']
    assert len(probed) == 5 and probed == {name: results[name] for name in probed}
    model = timm.create_model(
        'test_vit', num_classes=0, img_size=64, checkpoint_path=tmp_path / 'run' / 'encoder.safetensors')
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_data2vec_with_shards(train, images, tmp_path, request):
    """With --all-models; without, the teacher of I-JEPA stands for that of data2vec."""
    if not request.config.getoption('--all-models', False):
        pytest.skip('needs --all-models')
    flags = (
        f'--data-dir {images} --mim data2vec --mim-kwargs mask_ratio=0.5 clone_batch=2 decoder_layers=2 '
        'mask_noise_std=0 ema_decay=0.5 ema_end_decay=0.9 --opt momentum --momentum 0.9 --lr 1e-3 --clip-grad 1 '
        '--model-ema --model-ema-decay 0.5 --epochs 2 --experiment run')
    train(f'{flags} --output {tmp_path}/one --batch-size 8')
    run_processes(2, f'{flags} --output {tmp_path}/two --fsdp --batch-size 2 --grad-accum-steps 2 --stop-epoch 1')
    run_processes(2, f'{flags} --output {tmp_path}/two --fsdp --batch-size 4 --resume auto')
    assert_close(tmp_path / 'two' / 'run', tmp_path / 'one' / 'run')


@pytest.mark.parametrize('name, count', [
    ('test_vit', 6), ('swin_tiny_patch4_window7_224', 12), ('hiera_tiny_224', 12), ('eva02_tiny_patch14_224', 12)])
def test_blocks(name, count):
    model = timm.create_model(name, num_classes=0)
    blocks = repeated_blocks(model)
    assert len(blocks) == count and all('Block' in type(block).__name__ for block in blocks)


def test_blocks_of_decoder_and_target_encoder():
    method = create_mim('ijepa', 'test_vit', img_size=64, predictor_depth=3, predictor_dim=48, num_targets=2)
    assert len(repeated_blocks(method)) == 2 * 6 + 3


@pytest.mark.parametrize('flags, message', [
    ('--fsdp', '--fsdp needs several processes, and there is one'),
    ('--fsdp --torchcompile eager', '--torchcompile does not work with --fsdp'),
    ('--fsdp --clip-mode agc --clip-grad 1', '--clip-mode agc needs unsharded parameters'),
])
def test_mistakes(flags, message, train, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(f'--output {tmp_path} {flags}')
    assert stopped.value.code == 2 and message in capsys.readouterr().err
