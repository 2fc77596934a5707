"""TensorBoard and Weights & Biases are told what the files of the run say."""
import csv
import json
import sys
from argparse import Namespace

import pytest
import torch
from fake_wandb import SOURCE
from training import run_folder

from timm.mim.pretrain.errors import UserError


@pytest.fixture
def wandb_notes(tmp_path, monkeypatch):
    """Installs a fake `wandb` and returns a function that reads what it was told."""
    (tmp_path / 'packages').mkdir()
    (tmp_path / 'packages' / 'wandb.py').write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path / 'packages')
    monkeypatch.delitem(sys.modules, 'wandb', raising=False)
    monkeypatch.setenv('FAKE_WANDB', str(tmp_path / 'notes'))
    yield lambda: [json.loads(line) for line in (tmp_path / 'notes').read_text().splitlines()]
    sys.modules.pop('wandb', None)


def lines(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_wandb_goes_on_with_its_run(train, images, tmp_path, wandb_notes):
    run = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 2 --log-wandb --wandb-project photos ' \
          '--wandb-tags small first'
    train(f'{run} --stop-epoch 1')
    first = wandb_notes()
    assert first[0]['init']['id'] is None and first[0]['init']['resume'] is None
    assert first[0]['init']['project'] == 'photos' and first[0]['init']['tags'] == ['small', 'first']
    assert first[0]['init']['name'] == 'run' and first[0]['init']['config']['mask_ratio'] == 0.6
    assert first[-1] == {'finish': 'id-of-the-first', 'exit_code': 0}

    train(f'{run} --resume auto')
    second = wandb_notes()[len(first):]
    assert second[0]['init']['id'] == 'id-of-the-first' and second[0]['init']['resume'] == 'allow'

    told = [note['log'] for note in wandb_notes() if 'log' in note]
    with open(tmp_path / 'run' / 'summary.csv') as f:
        errors = [float(row['eval_masked_l1']) for row in csv.DictReader(f)]
    assert [values['eval/masked_l1'] for values in told if 'eval/masked_l1' in values] == errors
    reported = [(line['update'], line['loss'], line['lr']) for line in lines(tmp_path / 'run') if 'loss' in line]
    assert [(v['update'], v['train/loss'], v['train/lr']) for v in told if 'train/loss' in v] == reported
    pictures = [values['views'] for values in told if 'views' in values]
    assert pictures == [str(tmp_path / 'run' / 'reconstructions' / f'epoch-{epoch:04d}.png') for epoch in range(2)]


def test_wandb_resume_id(train, images, tmp_path, wandb_notes):
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --log-wandb --wandb-resume-id abc')
    assert wandb_notes()[0]['init']['id'] == 'abc' and wandb_notes()[0]['init']['resume'] == 'must'


@pytest.mark.parametrize('fault, code', [('not finite', 1), ('stopped', 75), ('disk full', 1)])
def test_wandb_is_told_of_a_run_that_did_not_end_well(fault, code, train, images, tmp_path, wandb_notes, monkeypatch):
    flags = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --warmup-epochs 0 --log-wandb'
    if fault == 'not finite':
        flags += ' --lr 1e30'
    elif fault == 'stopped':
        monkeypatch.setattr('timm.mim.pretrain.errors.StopSignal.__bool__', lambda self: True)
    else:
        # the last file of a run
        monkeypatch.setattr('timm.mim.pretrain.reporting.console.save_results', _no_space)
    with pytest.raises(SystemExit) as stopped:
        train(flags)
    assert stopped.value.code == code
    assert [note for note in wandb_notes() if 'finish' in note] == [{'finish': 'id-of-the-first', 'exit_code': 1}]


def _no_space(*_):
    raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('flags, message', [
    ('--log-wandb --wandb-project no-account', '--log-wandb: api_key not configured'),
    ('--wandb-tags a', '--wandb-tags is for --log-wandb, which is not given.'),
    ('--wandb-resume-id a', '--wandb-resume-id is for --log-wandb, which is not given.'),
])
def test_mistakes(flags, message, train, images, tmp_path, wandb_notes, capsys):
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 {flags}')
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / 'run' / 'args.yaml').exists()  # the same command runs once the mistake is mended


@pytest.mark.parametrize('package', ['wandb', 'tensorboard'])
def test_missing_package(package, train, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --log-{package}')
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.splitlines() == [f'train.py: error: --log-{package}: {package} is not installed; '
                                  f'pip install {package}.']
    assert not (tmp_path / 'run').exists()


def test_tensorboard_has_no_update_twice(train, images, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 2 --log-interval 1 --log-tensorboard'
    train(run)
    # as if it had been killed after the first epoch, with what it had told of the second already on disk
    folder = tmp_path / 'run'
    (folder / 'last.pth.tar').unlink()
    (folder / 'checkpoint-1.pth.tar').unlink()
    (folder / 'model_best.pth.tar').unlink()
    train(f'{run} --resume auto')

    events = EventAccumulator(str(folder / 'tensorboard'))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars('train/loss')]
    expected = [(line['update'], line['loss']) for line in lines(folder) if 'loss' in line]
    assert [step for step, _ in told] == [step for step, _ in expected] == list(range(1, 7))
    # events are float32
    assert torch.equal(torch.tensor([value for _, value in told]), torch.tensor([value for _, value in expected]))
    assert len(events.Scalars('eval/masked_l1')) == len(events.Images('views')) == 2


def test_training_with_labels_starts_a_run_too(tmp_path, wandb_notes):
    args = Namespace(
        log_wandb=True, wandb_project='photos', wandb_tags=['small'], wandb_resume_id='', resume='', epochs=3)
    assert run_folder._start_wandb(args, 'my_run')
    assert {name: wandb_notes()[0]['init'][name] for name in ('project', 'name', 'tags', 'id', 'resume')} == dict(
        project='photos', name='my_run', tags=['small'], id=None, resume=None)
    args.wandb_resume_id = 'abc'
    with pytest.raises(UserError, match='--wandb-resume-id continues a run'):
        run_folder._start_wandb(args, 'my_run')
    args.resume = 'last.pth.tar'
    run_folder._start_wandb(args, 'my_run')
    assert wandb_notes()[-1]['init']['id'] == 'abc' and wandb_notes()[-1]['init']['resume'] == 'must'


def test_training_with_labels_needs_wandb_for_its_flag(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(UserError, match='--log-wandb: wandb is not installed'):
        run_folder._start_wandb(Namespace(log_wandb=True, wandb_resume_id='', resume=''), 'my_run')
