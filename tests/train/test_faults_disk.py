"""Faults 3 and 4: a disk that is full, and checkpoints that are not whole."""
import logging
import random

import pytest
import torch
from child_runs import at_update, fill_disk, run_child
from mutations import flip_a_bit, largest_tensor
from run_folders import CHECKPOINTS, assert_equal_runs, load

from timm.mim import checkpoint_folder
from timm.mim.pretrain.checkpoints import load_checkpoint, newest_checkpoint
from timm.mim.pretrain.errors import UserError

FLAGS = '--experiment run --epochs 3 --lr 1e-3 --log-interval 1 --recovery-interval 2'


@pytest.fixture(scope='module')
def uninterrupted(train, images, tmp_path_factory):
    """The folder of a run that nothing happened to, by the format of its checkpoints."""
    runs = {}

    def run(form):
        if form not in runs:
            output = tmp_path_factory.mktemp('uninterrupted')
            train(f'--data-dir {images} --output {output} {FLAGS} --checkpoint-format {form}')
            runs[form] = output / 'run'
        return runs[form]
    return run


def with_tensors(checkpoint):
    """The file with the tensors of a checkpoint."""
    return checkpoint / '__0_0.distcp' if checkpoint.is_dir() else checkpoint


@pytest.mark.parametrize('form, size, update, name', [
    ('file', 2_000_000, 5, 'recovery_tmp.pth.tar'),  # within epoch 1
    ('file', 2_000_000, 6, 'tmp.pth.tar'),  # at its end
    ('file', 500_000, 6, 'encoder.safetensors'),
    ('folder', 2_000_000, 5, None),  # the one that is being written then
])
def test_full_disk(form, size, update, name, train, uninterrupted, images, tmp_path):
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --resume auto --checkpoint-format {form}'
    assert run_child(flags, tmp_path / 'log', at_update(update, fill_disk(size))) == 1
    errors = [line for line in (tmp_path / 'log').read_text().splitlines() if 'error:' in line]
    path = tmp_path / 'run' / (name or '')
    assert len(errors) == 1 and f"'{path}" in errors[0] and 'File too large' in errors[0]
    assert 'Traceback' not in (tmp_path / 'log').read_text()
    assert not list((tmp_path / 'run').glob('*.partial'))
    if form == 'file':
        assert load(tmp_path / 'run' / 'last.pth.tar')['run']['update'] == 3  # the one before is whole
    else:
        assert newest_checkpoint(tmp_path / 'run').update in (2, 3)  # before the one that was being written
    train(flags)
    assert_equal_runs(uninterrupted(form), tmp_path / 'run')


def test_message_says_how_much_is_missing(images, tmp_path):
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS}'
    assert run_child(flags, tmp_path / 'log', at_update(6, fill_disk(2_000_000))) == 1
    line = next(line for line in (tmp_path / 'log').read_text().splitlines() if 'error:' in line)
    size = int(line.partition('Checkpoint of ')[2].partition(' bytes')[0])
    state = load(tmp_path / 'run' / 'last.pth.tar')
    weights = sum(t.nbytes for t in (*state['state_dict'].values(), *state['task_state']['method'].values()))
    assert size == pytest.approx(3 * weights, rel=0.1)  # with the two averages of AdamW


def cut(path, share):
    with open(path, 'r+b') as f:
        f.truncate(int(path.stat().st_size * share))


@pytest.mark.parametrize('form, share', [('file', 0.5), ('file', 0), ('folder', 0.5)])
def test_truncated_checkpoint(form, share, train, uninterrupted, images, tmp_path, caplog):
    """The newest one is a hard link of others, which are cut with it; the one before is left."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --checkpoint-format {form}'
    train(f'{flags} --stop-epoch 2')
    last = tmp_path / 'run' / f'last{CHECKPOINTS[form]}'
    cut(with_tensors(last), share)
    with caplog.at_level(logging.WARNING):
        train(f'{flags} --resume auto')
    assert f"'{tmp_path}/run/{last.name}' is not " in caplog.text and ' complete' in caplog.text
    assert 'resuming after step 3' in (tmp_path / 'run' / 'train.log').read_text()
    assert_equal_runs(uninterrupted(form), tmp_path / 'run')


def zero_a_block(path):
    start, size = largest_tensor(path)
    with open(path, 'r+b') as file:
        file.seek(start)
        file.write(bytes(min(size, 65536)))


@pytest.mark.parametrize('form, damage', [('file', flip_a_bit), ('file', zero_a_block), ('folder', flip_a_bit)])
def test_damaged_tensor(form, damage, train, uninterrupted, images, tmp_path, caplog, capsys):
    """PyTorch loads it as if nothing were wrong. It is named, and the checkpoint before it is taken."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS} --checkpoint-format {form}'
    train(f'{flags} --stop-epoch 2')
    last = tmp_path / 'run' / f'last{CHECKPOINTS[form]}'
    damage(with_tensors(last))
    if form == 'file':
        torch.load(last, weights_only=False)
    else:
        checkpoint_folder.read_tensors(last, load_checkpoint(last, verify=False).content)
    with pytest.raises(SystemExit) as stopped:
        train(f'{flags} --resume {last}')
    assert stopped.value.code == 2 and f"'{with_tensors(last)}' is damaged: Bad CRC-32" in capsys.readouterr().err
    with caplog.at_level(logging.WARNING):
        train(f'{flags} --resume auto')
    assert f"Skipped: --resume auto: '{with_tensors(last)}' is damaged" in caplog.text
    assert 'resuming after step 3' in (tmp_path / 'run' / 'train.log').read_text()
    assert_equal_runs(uninterrupted(form), tmp_path / 'run')


def test_every_byte_of_what_is_loaded_is_verified(tmp_path):
    """Whatever byte is changed, the file is refused or holds what it held."""
    path = tmp_path / 'x.pth.tar'
    torch.save(dict(state_dict=dict(a=torch.arange(40.)), epoch=3), path)
    content = path.read_bytes()
    generator = random.Random(0)
    for _ in range(200):
        place, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1:])
        try:
            loaded = load_checkpoint(path).content
        except UserError:
            continue
        assert loaded['epoch'] == 3 and torch.equal(loaded['state_dict']['a'], torch.arange(40.)), (place, bit)


@pytest.mark.parametrize('resume', ['{folder}/last.pth.tar', 'auto'])
def test_nothing_to_go_on_from(resume, train, images, tmp_path, capsys):
    """A checkpoint that was asked for, or all of them: never from the beginning instead."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS}'
    train(f'{flags} --stop-epoch 1')
    cut(tmp_path / 'run' / 'last.pth.tar', 0.9)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').rglob('*') if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        train(f'{flags} --resume ' + resume.format(folder=tmp_path / 'run'))
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert 'is not a complete checkpoint' in error or "none of the 3 checkpoints in" in error
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_left_over_file_is_not_taken(train, uninterrupted, images, tmp_path):
    """A whole checkpoint under a name that says it is not."""
    flags = f'--data-dir {images} --output {tmp_path} {FLAGS}'
    train(f'{flags} --stop-epoch 2')
    other = torch.load(tmp_path / 'run' / 'last.pth.tar', weights_only=False)
    torch.save({**other, 'run': {**other['run'], 'update': 8}}, tmp_path / 'run' / 'tmp.pth.tar.partial')
    train(f'{flags} --resume auto')
    assert_equal_runs(uninterrupted('file'), tmp_path / 'run')
