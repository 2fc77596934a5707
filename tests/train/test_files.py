"""What is written: valid JSON, errors that name the file, nothing left of a run that was killed."""
import errno
import json
import math
import os
import resource
import signal
from contextlib import contextmanager

import pytest
from child_runs import killed_at_change, run_child

from timm.mim.files import naming, to_json, write_complete
from timm.mim.pretrain.reporting import records, report
from timm.mim.pretrain.reporting.report import create_figure


def strict(text):
    def refuse(word):
        raise AssertionError(f'{word} is not JSON')
    return json.loads(text, parse_constant=refuse)


def test_json_without_nan():
    values = dict(a=math.nan, b=[1.5, -math.inf], c=dict(d=(math.inf, 'NaN')), e=None, f=True, g=3)
    assert strict(to_json(values)) == dict(a=None, b=[1.5, None], c=dict(d=[None, 'NaN']), e=None, f=True, g=3)
    assert to_json(dict(a=1), indent=2) == json.dumps(dict(a=1), indent=2)


@pytest.fixture
def recorder(tmp_path):
    (tmp_path / 'reconstructions').mkdir()
    return records.Records(tmp_path, dict(mean=(0.5,) * 3, std=(0.5,) * 3), 0, 3)


def test_metrics_are_json(recorder, tmp_path):
    recorder.add_step(0, 1, dict(loss=math.nan, lr=0.1))
    recorder.add_epoch(0, 3, dict(loss=0.5), dict(loss=math.nan, target_rank=math.inf), 0.1)
    recorder.add_epoch(1, 6, dict(loss=0.5), dict(loss=0.25, target_rank=3.), 0.1)
    lines = [strict(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line.get('loss', line.get('eval_loss')) for line in lines] == [None, None, 0.25]
    create_figure(lines)
    assert '<td></td>' in report._table([{k: v for k, v in line.items() if k != 'loss'} for line in lines[1:]])


def test_advice_where_one_colour_is_better(recorder, caplog):
    recorder.warmup_epochs = 2
    for epoch, error in enumerate((0.9, 0.9, 0.4, 0.6)):
        caplog.clear()
        recorder.add_epoch(epoch, 3, dict(loss=0.5), dict(masked_l1=error, mean_of_visible=0.5), 0.1)
        assert ('advice: after warm-up' in caplog.text) == (epoch == 3)
    recorder.add_epoch(4, 3, dict(loss=0.5), dict(loss=9.), 0.1)  # a method without pixels has no such error


@contextmanager
def files_of_at_most(size):
    """As on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_is_named(recorder, tmp_path):
    cases = {
        'metrics.jsonl': lambda: recorder.add_step(0, 1, dict(loss=0.5)),
        'summary.csv': lambda: recorder.add_epoch(0, 3, dict(loss=0.5), dict(loss=0.5), 0.1),
        'x.json': lambda: write_complete(tmp_path / 'x.json', lambda path: path.write_text('x')),
    }
    for name, write in cases.items():
        with files_of_at_most(0), pytest.raises(OSError, match=f"'{tmp_path}/{name}' cannot be written: "):
            write()
    with pytest.raises(OSError, match="'x' cannot be written: .*No space left"), naming('x'):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_at_the_start(train, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped, files_of_at_most(0):
        train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1')
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1
    assert f"'{tmp_path}/run' cannot be written" in error


def test_killed_inside_the_export(images, tmp_path):
    """What is left of the encoder's files is gone when the run goes on."""
    def flags(more=''):
        return f'--data-dir {images} --output {tmp_path} --experiment run --epochs 1 --lr 1e-3 --resume auto {more}'
    (tmp_path / 'run').mkdir()
    assert run_child(flags(), tmp_path / 'log', killed_at_change(1, tmp_path / 'run' / 'encoder')) == -signal.SIGKILL
    left = [tmp_path / 'run' / name for name in (
        '.encoder.safetensors.partial', 'encoder/.config.json.partial', 'reconstructions/.x.png.partial')]
    for path in left:
        path.write_text('half')
    assert run_child(flags(), tmp_path / 'log') == 0
    assert not list((tmp_path / 'run').rglob('*.partial'))
    assert (tmp_path / 'run' / 'encoder' / 'config.json').exists()
