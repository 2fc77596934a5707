"""train.log, the curves and memory."""
import json
import logging
import sys

import pytest
import torch
from tiny_runs import write_images

from timm.mim.pretrain.reporting.report import create_figure, title_of
from timm.mim.pretrain.reporting.console import peak_memory
from timm.mim.pretrain.reporting.records import Records


def messages(folder):
    lines = (folder / 'train.log').read_text().splitlines()
    return [line[len('2000-01-01 00:00:00  '):] for line in lines if line[:2] == '20']


def test_log_says_what_was_said(finished_run):
    told = messages(finished_run)
    assert told[0].startswith('simmim with test_vit')
    assert [line for line in told if line.startswith('epoch 5: training loss')]
    text = (finished_run / 'train.log').read_text()
    assert 'fine-tune it' in text and '\x1b' not in text and '\r' not in text


def test_log_goes_on_and_tells_the_end(train, images, tmp_path, capsys):
    run = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 3'
    train(f'{run} --stop-epoch 1')
    (tmp_path / 'run' / 'checkpoint-7.pth.tar').write_bytes(b'half of a checkpoint')
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train(f'{run} --resume auto --opt sgd --lr 1e30 --clip-grad 0 --no-resume-opt')
    told = messages(tmp_path / 'run')
    assert sum(line.startswith('simmim with test_vit') for line in told) == 2
    assert [line for line in told if 'checkpoint-7' in line]  # said before the folder was opened
    assert told[-1].startswith('FloatingPointError: the loss is not finite')
    assert told[-1].removeprefix('FloatingPointError: ') in capsys.readouterr().err.splitlines()[-1]
    assert not [handler for handler in logging.root.handlers if 'LinesToFile' in type(handler).__name__]


def test_without_matplotlib(train, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    train(f'--data-dir {images} --output {tmp_path} --experiment run --epochs 2')
    notes = [line for line in messages(tmp_path / 'run') if 'pip install matplotlib' in line]
    assert len(notes) == 1, notes
    assert not (tmp_path / 'run' / 'curves.png').exists()


def test_curves_are_drawn(train, tmp_path):
    pytest.importorskip('matplotlib')
    write_images(tmp_path / 'images', 8)
    train(f'--mim ijepa --device cpu --model test_vit --img-size 64 --workers 0 --batch-size 4 --epochs 2 '
          f'--mim-kwargs predictor_depth=1 predictor_dim=48 num_targets=2 --data-dir {tmp_path}/images '
          f'--output {tmp_path} --experiment run --log-interval 1', tiny=False)
    assert (tmp_path / 'run' / 'curves.png').read_bytes().startswith(b'\x89PNG')
    told = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    figure = create_figure(told)

    steps = [line for line in told if 'loss' in line]
    drawn = {line.get_label(): line.get_xydata().tolist() for axis in figure.axes for line in axis.lines}
    assert drawn['training loss'] == [[line['update'], line['loss']] for line in steps]
    assert [line['lr'] for line in steps] in [[y for _, y in points] for points in drawn.values()]
    evaluations = [line for line in told if 'eval_loss' in line]
    assert len(evaluations) == 2
    for name in ('loss', 'loss_of_constant', 'target_std', 'target_rank'):
        assert drawn[title_of(name)] == [[line['update'], line[f'eval_{name}']] for line in evaluations]
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ['training', 'held-out error', 'variety of the targets']


def test_constant_variety_is_visible():
    """A line at the largest value lies below the frame's upper edge, not on it, and the two lines lie apart."""
    pytest.importorskip('matplotlib')
    figure = create_figure([
        dict(update=n, epoch=n, eval_loss=1., eval_target_std=0.8, eval_target_rank=1.58) for n in range(4)])
    heights = [
        line.get_ydata()[0] / axis.get_ylim()[1] for axis in figure.axes for line in axis.lines
        if line.get_label() in (title_of('target_std'), title_of('target_rank'))]
    assert len(heights) == 2 and all(0 < height < 0.9 for height in heights)
    assert abs(heights[0] - heights[1]) > 0.1
    assert sum(len(axis.lines) for axis in figure.axes) == 5  # loss, rate, error, and two of variety


def test_columns_of_the_table(tmp_path):
    """Probes may come and go between two parts of a run; numbers stay under their names."""
    def add(epoch, held_out):
        records.add_epoch(epoch, epoch + 1, dict(loss=1.), held_out, 0.1)
    (tmp_path / 'reconstructions').mkdir()
    records = Records(tmp_path, {}, 0, 1)
    records.draws_curves = False
    add(0, dict(masked_l1=0.5, fill=0.7))
    add(1, dict(masked_l1=0.4, fill=0.7, knn_top1=60.))
    add(2, dict(masked_l1=0.3, fill=0.7, knn_top1=None))
    add(3, dict(masked_l1=0.2, fill=0.7))
    table = (tmp_path / 'summary.csv').read_text().splitlines()
    assert table == [
        'epoch,train_loss,eval_masked_l1,eval_fill,lr,eval_knn_top1',
        '0,1.0,0.5,0.7,0.1,', '1,1.0,0.4,0.7,0.1,60.0', '2,1.0,0.3,0.7,0.1,', '3,1.0,0.2,0.7,0.1,']
    told = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert 'eval_knn_top1' in told[1] and 'eval_knn_top1' not in told[2]


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='compares with what Linux says')
def test_memory_is_the_peak_of_the_resident_set():
    with open('/proc/self/status') as f:
        peak = next(int(line.split()[1]) * 1024 for line in f if line.startswith('VmHWM'))
    # the kernel counts the two in different moments
    assert peak_memory(torch.device('cpu')) == pytest.approx(peak, rel=0.02)
