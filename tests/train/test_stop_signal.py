"""What signals do to a run, without a run."""
import multiprocessing
import os
import shlex
import signal
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from timm.mim.pretrain import errors
from timm.mim.pretrain.reporting.report import go_on_command, typed_command
from timm.mim.pretrain.errors import SIGNALS, StopSignal


def raise_signal(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


def test_every_signal_is_acknowledged(capfd):
    before = [signal.getsignal(number) for number in SIGNALS]
    assert set(SIGNALS) == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    for number in SIGNALS:
        with StopSignal() as stop:
            assert not stop
            raise_signal(number)
            assert stop and stop.received == number
            lines = capfd.readouterr().err.splitlines()
            assert len(lines) == 1 and 'stopping after this step; again to stop now' in lines[0]
            assert signal.Signals(number).name in lines[0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_second_signal_stops_now(monkeypatch, capfd):
    died = []
    monkeypatch.setattr(errors, '_die_of', died.append)
    monkeypatch.setattr(errors, '_SAME_REQUEST', 0.1)
    with StopSignal():
        raise_signal(signal.SIGTERM)
        raise_signal(signal.SIGTERM)  # timeout(1) sends it twice
        raise_signal(signal.SIGINT)  # torchrun's processes get both after one Ctrl-C
        assert died == []
        time.sleep(0.1)
        raise_signal(signal.SIGTERM)
    assert died == [signal.SIGTERM]
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_ignored_signals_stay_ignored():
    """nohup lets SIGHUP be ignored, a shell SIGINT in the background."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            raise_signal(signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def sleep_for_long():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # as the processes do that load images
    time.sleep(60)


def die(pipe):
    with StopSignal():
        child = multiprocessing.get_context('fork').Process(target=sleep_for_long)
        child.start()
        pipe.send(child.pid)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)


def test_it_dies_of_the_signal_and_its_workers_with_it():
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe()
    process = context.Process(target=die, args=(there,))
    process.start()
    worker = here.recv()
    process.join(20)
    assert process.exitcode == -signal.SIGINT
    for _ in range(100):  # the system takes it away when it has the time
        if not Path(f'/proc/{worker}').exists() or 'State:\tZ' in Path(f'/proc/{worker}/status').read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail('the worker lives')


@pytest.mark.parametrize('options, added', [
    (dict(resume='auto', experiment='x', output=''), []),
    (dict(resume='', experiment='x', output=''), ['--resume', 'auto']),
    (dict(resume='', experiment='', output='o'), ['--experiment', "it's one", '--resume', 'auto']),
    (dict(resume='a/last.pth.tar', experiment='', output=''),
     ['--output', 'some where', '--experiment', "it's one", '--resume', 'auto']),
])
def test_command(options, added, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py', '--mim', 'mae', '--data-dir', 'my images'])
    words = shlex.split(go_on_command(typed_command(), Namespace(**options), Path('some where', "it's one")))
    assert words[1:] == ['train.py', '--mim', 'mae', '--data-dir', 'my images', *added]


@pytest.mark.parametrize('typed, command', [
    (['.venv/bin/python', '-u', 'train.py'], '.venv/bin/python -u train.py'),
    (['python3', '-m', 'timm.mim.pretrain'], 'python3 -m timm.mim.pretrain'),
])
def test_command_as_it_was_typed(typed, command, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [f'/somewhere/{typed[-1]}', '--mim', 'mae'])
    monkeypatch.setattr(sys, 'orig_argv', [*typed, '--mim', 'mae'])
    options, folder = Namespace(resume='', experiment='x', output=''), Path('x')
    assert go_on_command(typed_command(), options, folder) == f'{command} --mim mae --resume auto'
    for name, value in dict(TORCHELASTIC_RUN_ID='none', LOCAL_WORLD_SIZE='2', WORLD_SIZE='2').items():
        monkeypatch.setenv(name, value)
    words = [word for word in typed[1:] if word != '-u'] + ['--mim', 'mae']
    monkeypatch.setattr(sys, 'orig_argv', ['/usr/bin/python3', '-u', *words])  # as torchrun starts them
    command = f'torchrun --nproc-per-node 2 {" ".join(words)}'
    assert go_on_command(typed_command(), options, folder) == f'{command} --resume auto'
    for name, value in dict(GROUP_WORLD_SIZE='3', WORLD_SIZE='6', MASTER_ADDR='first').items():
        monkeypatch.setenv(name, value)
    launcher = 'torchrun --nnodes 3 --rdzv-backend c10d --rdzv-endpoint first --nproc-per-node 2'
    assert typed_command() == f'{launcher} {" ".join(words)}'
    monkeypatch.setenv('WORLD_SIZE', '5')  # machines with unequal numbers of devices
    assert typed_command().startswith('/usr/bin/python3')
