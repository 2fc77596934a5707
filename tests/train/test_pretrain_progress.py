"""Progress on a terminal and in a file."""
import logging

from timm.mim.pretrain.reporting.console import Progress


def test_lines(caplog):
    with caplog.at_level(logging.INFO):
        progress = Progress(10, 20, images_per_update=32)
        progress.advance()
        progress.report(3, 11, loss=0.5, learning_rate=1e-3)
    assert caplog.messages[0].startswith('epoch 4  step 11/20  loss 0.5000  lr 1.00e-03  ')
    assert 'images/s' in caplog.text and 'left' in caplog.text


def test_rate_leaves_out_pauses(monkeypatch, caplog):
    clock = iter([0.0, 4.0, 104.0, 106.0])
    monkeypatch.setattr('timm.mim.pretrain.reporting.console.time.perf_counter', lambda: next(clock))
    with caplog.at_level(logging.INFO):
        progress = Progress(0, 12, images_per_update=10)
        progress.report(0, 4, 1.0, 0.1)  # 4 updates in 4 s
        progress.pause()  # 100 s of evaluation
        progress.report(1, 8, 1.0, 0.1)  # 4 updates in 2 s
    assert '10.0 images/s  00:08 left' in caplog.messages[0]
    assert '20.0 images/s' in caplog.messages[1]


def test_bar(capsys):
    progress = Progress(0, 4, images_per_update=8, bar=True)
    for update in range(4):
        progress.advance()
        progress.report(0, update + 1, loss=0.25, learning_rate=1e-3)
    progress.close()
    text = capsys.readouterr().err
    assert '4/4' in text and 'loss 0.2500' in text and 'images/s' in text


def test_other_processes_are_quiet(caplog, capsys):
    with caplog.at_level(logging.INFO):
        progress = Progress(0, 4, images_per_update=8, bar=True, quiet=True)
        progress.advance()
        progress.report(0, 1, 0.5, 0.1)
        progress.close()
    assert not caplog.messages and not capsys.readouterr().err
