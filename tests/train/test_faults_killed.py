"""Fault 1: a run that is killed goes on as if nothing had happened."""
import random
import signal

import pytest
from child_runs import at_update, changes_logged, kill, killed_at_change, killed_inside_save, run_child
from run_folders import assert_equal_runs, equal, load
from safetensors.torch import load_file

from timm.mim.convert.__main__ import main as convert

# Stochastic depth, since the random numbers of the model have to go on as well.
FLAGS = (
    '--experiment run --epochs 3 --lr 1e-3 --log-interval 1 --recovery-interval 2 --save-epochs 1 --checkpoint-hist 2 '
    '--resume auto --model-ema --model-ema-decay 0.9 --model-kwargs drop_path_rate=0.3')
SMALL_DECODER = '--mim-kwargs decoder_depth=1 decoder_dim=32 decoder_heads=2'
METHODS = dict(
    simmim='--amp --amp-dtype float16',
    mae=f'--mim mae {SMALL_DECODER}',
    ijepa='--mim ijepa --mim-kwargs predictor_depth=1 predictor_dim=32 predictor_heads=2 num_targets=2',
)
METHODS.update({f'{method}-folders': f'{METHODS[method]} --checkpoint-format folder' for method in METHODS})

@pytest.fixture(scope='module')
def uninterrupted(images, tmp_path_factory):
    """Runs that nothing happened to, by method: the folder, and the changes that were made in it, one after another."""
    runs = {}

    def run(method):
        if method not in runs:
            output = tmp_path_factory.mktemp(f'uninterrupted-{method}')
            code = run_child(
                f'--data-dir {images} --output {output} {FLAGS} {METHODS[method]}', output / 'log',
                changes_logged(output / 'run', output / 'changes'))
            assert code == 0, (output / 'log').read_text()
            runs[method] = output / 'run', (output / 'changes').read_text().splitlines()
        return runs[method]
    return run


@pytest.mark.parametrize('method, change', [
    ('simmim', 'open metrics.jsonl'),
    ('simmim', 'open tmp.pth.tar.partial'),  # all of an epoch is written but its checkpoint
    ('simmim', 'os.link last.pth.tar'),  # its checkpoint is there, and not what follows from it
    ('simmim', 'open .summary.json.partial'),  # all is done but to say so
    ('mae', 'any'),
    ('mae', 'os.link last.pth.tar'),
    ('ijepa', 'any'),
    ('ijepa', 'open tmp.pth.tar.partial'),
    ('simmim-folders', 'os.rename .metadata.tmp'),  # all tensors are written, and not where they lie
    ('simmim-folders', 'os.rename writing.dcp.partial'),  # all is written, under another name
    ('simmim-folders', 'os.rename last.dcp'),  # the one before gives up its place
    ('ijepa-folders', 'any'),
])
def test_killed_anywhere(method, change, uninterrupted, images, tmp_path):
    """Right before a change in the run folder."""
    expected, changes = uninterrupted(method)
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} {METHODS[method]}'
    places = [place for place, made in enumerate(changes, start=1) if change in (made, 'any')]
    place = random.Random(f'{method} {change}').choice(places)
    fault = killed_at_change(place, tmp_path / 'run')
    assert run_child(flags, tmp_path / 'log', fault) == -signal.SIGKILL, changes[place - 1]
    assert run_child(flags, tmp_path / 'log') == 0, (tmp_path / 'log').read_text()
    assert_equal_runs(expected, tmp_path / 'run')


def test_folders_hold_what_files_do(uninterrupted, tmp_path):
    files, folders = uninterrupted('ijepa')[0], uninterrupted('ijepa-folders')[0]
    names = sorted(path.name.removesuffix('.pth.tar') for path in files.glob('*.pth.tar'))
    assert names == sorted(path.name.removesuffix('.dcp') for path in folders.glob('*.dcp')) and len(names) > 3
    for name in names:
        a, b = load(files / f'{name}.pth.tar'), load(folders / f'{name}.dcp')
        history = [(file.removesuffix('.dcp') + '.pth.tar', metric) for file, metric in b['saver']['checkpoint_files']]
        assert equal(a, {**b, 'saver': {**b['saver'], 'checkpoint_files': history}}), name
    for name in ('encoder.safetensors', 'summary.csv'):
        assert (files / name).read_bytes() == (folders / name).read_bytes()
    converted = tmp_path / 'encoder.safetensors'
    assert convert([str(folders / 'last.dcp'), str(converted), '--to', 'target-encoder', '--ema']) == 0
    assert equal(load_file(converted), load_file(files / 'encoder.safetensors'))


@pytest.mark.parametrize('method, number', [
    ('simmim', 1), ('simmim', 2),  # the first checkpoint is within an epoch, the second at its end
    ('simmim-folders', 600),  # of the tensors of all checkpoints
])
def test_killed_inside_a_save(method, number, uninterrupted, images, tmp_path):
    """Half of a checkpoint is on the disk."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} {METHODS[method]}'
    assert run_child(flags, tmp_path / 'log', killed_inside_save(number)) == -signal.SIGKILL
    assert list((tmp_path / 'run').glob('*.partial'))
    assert run_child(flags, tmp_path / 'log') == 0, (tmp_path / 'log').read_text()
    assert_equal_runs(uninterrupted(method)[0], tmp_path / 'run')


def test_killed_time_and_again(uninterrupted, images, tmp_path):
    """In every update that follows a checkpoint."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} {METHODS["simmim"]}'
    kills = 0
    while run_child(flags, tmp_path / 'log', at_update(3, kill)) == -signal.SIGKILL:
        kills += 1
        assert kills < 9
    assert kills == 5
    assert_equal_runs(uninterrupted('simmim')[0], tmp_path / 'run')
