"""Models sharded over processes (FSDP2)."""
import json

import pytest
import torch
from child_runs import start_ranks
from processes import run_processes
from run_folders import equal, load
from sharded_updates import MORE_WAYS, WAYS, WORLD_SIZE, measure, update_of_one_process
from tiny_runs import write_images

import timm
import timm.mim.pretrain.building as building
from timm.mim import create_mim
from timm.mim.pretrain.blocks import checkpoint_blocks, repeated_blocks
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


def test_sharded_run_goes_on_without_shards(train, flags, single, tmp_path):
    """Two groups of two processes, with all that there is for large models."""
    run_processes(
        4, f'{flags} --output {tmp_path} --fsdp --fsdp-replicas 2 --fsdp-reshard never --torchcompile eager '
        '--grad-checkpointing-every 2 --batch-size 1 --grad-accum-steps 2 --stop-epoch 1')
    train(f'{flags} --output {tmp_path} --batch-size 8 --resume auto')
    assert_close(tmp_path / 'run', single)


def test_folder_of_two_processes_goes_on_with_one(train, flags, single, tmp_path):
    """The folder holds what the file does, bit for bit."""
    run_processes(2, f'{flags} --output {tmp_path}/file {SHARDED}')
    run_processes(2, f'{flags} --output {tmp_path} {SHARDED} --checkpoint-format folder')
    sharded = tmp_path / 'file' / 'run'
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
    """Each of them reads its own part, of which two have the same."""
    folder = '--checkpoint-format folder'
    train(f'{flags} --output {tmp_path} --batch-size 8 --stop-epoch 1 {folder}')
    run_processes(4, f'{flags} --output {tmp_path} --fsdp --fsdp-replicas 2 --batch-size 2 --resume auto {folder}')
    assert_close(tmp_path / 'run', single)


def use_files_for_all():
    building._LARGE = 16


def test_run_goes_on_with_shards(train, flags, single, tmp_path):
    """Weights, target encoder and moving average are built in files."""
    train(f'{flags} --output {tmp_path} --batch-size 8 --stop-epoch 1')
    for number in range(2):
        write_images(tmp_path / 'labelled' / str(number), 11, seed=number)
    probes = f'--mim-probe-dir {tmp_path}/labelled --mim-probe-layers 2 last --mim-probe knn linear attentive'
    run_processes(
        2, f'{flags} --output {tmp_path} --fsdp --fsdp-build-dir {tmp_path} --batch-size 4 --resume auto {probes}',
        faults=dict.fromkeys(range(2), use_files_for_all))
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


@pytest.fixture(scope='module')
def updates(tmp_path_factory):
    """Updates in four processes, by the name of the way in which the method is sharded."""
    found = {}

    def run(way):
        few = way in WAYS
        if way not in found:
            folder = tmp_path_factory.mktemp('updates')
            runs = start_ranks(
                WORLD_SIZE, f'{folder}/result.pt {"few" if few else "more"}', folder, complete=True, target=measure)
            assert [run.wait() for run in runs] == [0] * WORLD_SIZE, [run.output for run in runs]
            found.update(torch.load(folder / 'result.pt', weights_only=False))
        return found[way]
    return run


def distance(gradients, expected):
    assert gradients.keys() == expected.keys()
    both = [torch.cat([part[name].flatten() for name in expected]) for part in (gradients, expected)]
    return ((both[0] - both[1]).norm() / both[1].norm()).item()


@pytest.mark.parametrize('way', [*WAYS, *MORE_WAYS])
def test_update_equals_that_of_one_process(way, updates, request):
    """Loss and gradients. In float32 the order of additions differs; bfloat16 has 8 significant bits."""
    if way in MORE_WAYS and not request.config.getoption('--all-models', False):
        pytest.skip('needs --all-models')
    name, before, sharding, autocast = {**WAYS, **MORE_WAYS}[way]
    found, expected = updates(way), update_of_one_process(name, autocast)
    error = distance(found['gradients'], expected['gradients'])
    if autocast is None:
        torch.testing.assert_close(found['loss'], expected['loss'], atol=0, rtol=1e-6)
        assert error < 2e-6
    else:
        torch.testing.assert_close(found['loss'], expected['loss'], atol=0, rtol=2e-3)
        assert 1e-4 < error < 2e-2  # the type has an effect
    replicas, compiled = sharding.get('replicas', 1), bool(found['compiled'])
    assert found['placements'] == (['Shard'] if replicas == 1 else ['Replicate', 'Shard'])
    assert found['share'] == pytest.approx(replicas / WORLD_SIZE, rel=0.02)  # shares are padded to equal sizes
    assert found['gathered'] == {not sharding.get('reshard', True)}
    assert found['names'] and compiled == ('compiled' in way)
    if not compiled:
        assert found['dtypes'] == {torch.float32 if autocast is None else autocast}
        assert found['forwards'] == (2 if 'recomputed' in way else 1)


def test_every_second_block_is_recomputed():
    method = create_mim('mae', 'test_vit', img_size=64, decoder_depth=3, decoder_dim=48, decoder_heads=2)
    checkpoint_blocks(method, 2)
    calls = []
    for number, block in enumerate(repeated_blocks(method)):
        block.norm1.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    method(torch.randn(2, 3, 64, 64)).loss.backward()
    assert [calls.count(number) for number in range(9)] == [2, 1, 2, 1, 2, 1, 2, 1, 2]


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
    ('--fsdp --channels-last', '--channels-last does not work with --fsdp'),
    ('--fsdp --clip-mode agc --clip-grad 1', '--clip-mode agc needs unsharded parameters'),
    ('--fsdp --fsdp-param-dtype bfloat16', '--fsdp-param-dtype bfloat16 needs --amp --amp-dtype bfloat16'),
    ('--fsdp --fsdp-param-dtype float16 --amp', '--fsdp-param-dtype float16 needs --amp --amp-dtype float16'),
    ('--fsdp-replicas 2', '--fsdp-replicas is for --fsdp, which is not given'),
    ('--fsdp-reshard never', '--fsdp-reshard is for --fsdp, which is not given'),
    ('--fsdp --plan 8 --fsdp-replicas 2', '--plan does not count what --fsdp-replicas changes'),
    ('--fsdp-build-dir .', '--fsdp-build-dir is for --fsdp, which is not given'),
    ('--fsdp --fsdp-build-dir NOWHERE', "--fsdp-build-dir: there is no folder 'NOWHERE'"),
    ('--grad-checkpointing --grad-checkpointing-every 2', '--grad-checkpointing recomputes all blocks'),
])
def test_mistakes(flags, message, train, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(f'--output {tmp_path} {flags}')
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize('flags, message', [
    ('--fsdp-replicas 3', '--fsdp-replicas 3 does not divide the number of processes, 4'),
    ('--fsdp-replicas 4', '--fsdp-replicas 4 leaves one process in each group'),
])
def test_groups(flags, message, train, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4')
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --fsdp {flags}')
    assert stopped.value.code == 2 and message in capsys.readouterr().err
