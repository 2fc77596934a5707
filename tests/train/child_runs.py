"""Runs of the training script in processes of their own, which can be killed.

They are forked from a process that has imported everything and done nothing else, so that a run costs what it trains.
"""
import importlib.util
import io
import multiprocessing
import os
import resource
import shlex
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional
from unittest import mock

import timm.mim.pretrain.run_loop  # noqa: F401  imported here for all children
import torch
from tiny_runs import SCRIPT, environment

from timm.mim.pretrain.held_out import HeldOutImages
from timm.task import MaskedImageModelingTask

TINY = '--device cpu --model test_vit --img-size 64 --workers 0 --batch-size 4'
SIMMIM = '--mim simmim --mask-unit 16'  # unless the flags name a method
TIMEOUT = 120  # seconds after which a test fails instead of waiting on; a run takes one or two

# Modules that are imported before the forks; those that are absent do not count.
_IMPORTED = [
    'child_runs', 'torch.distributed.run', 'torch._dynamo', 'matplotlib.figure', 'matplotlib.backends.backend_agg']

_context = multiprocessing.get_context('forkserver')


class ChildRun:
    """A run in a process of its own.

    Args:
        flags: Flags besides those of a tiny run.
        log: File for what it prints.
        fault: Called in the process before the script.
        target: What runs in the process with the arguments, instead of the script.
        complete: The flags are all there are.
        environ: Environment variables to set in it.
    """

    def __init__(
            self,
            flags: str,
            log: Path,
            fault: Optional[Callable] = None,
            target: Optional[Callable] = None,
            complete: bool = False,
            **environ: str,
    ):
        self.log = log
        if not complete:
            flags = ' '.join([TINY, '' if '--mim ' in flags else SIMMIM, flags])
        _context.set_forkserver_preload(_IMPORTED)
        target = target or partial(run_script, fault=fault)
        with mock.patch.dict(os.environ, environment()):  # that of the first run is the fork server's
            self.process = _context.Process(
                target=_run_child, args=(target, shlex.split(flags), str(log), environ))
            self.process.start()

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        """Return the exit code, negative if a signal killed it."""
        self.process.join(TIMEOUT)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f'still running after {TIMEOUT} s:\n{self.output}')
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text()


def run_child(flags: str, log: Path, fault: Optional[Callable] = None) -> int:
    """Run to the end, and return the exit code."""
    return ChildRun(flags, log, fault).wait()


def start_ranks(
        world_size: int,
        flags: str,
        folder: Path,
        faults: Optional[Dict[int, Callable]] = None,
        complete: bool = False,
        target: Optional[Callable] = None,
) -> List[ChildRun]:
    """Start processes that find each other through the environment, as under torchrun.

    Args:
        world_size: Number of processes.
        flags: Flags besides those of a tiny run.
        folder: Folder for what they print.
        faults: What is called in a process before the script, by rank.
        complete: The flags are all there are.
        target: What runs in a process with the arguments, instead of the script.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    return [
        ChildRun(
            flags, folder / f'rank{rank}.log', (faults or {}).get(rank), target, complete, RANK=str(rank),
            LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR='localhost', MASTER_PORT=str(port))
        for rank in range(world_size)
    ]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        return s.getsockname()[1]


def _run_child(target, arguments, log, environ) -> None:
    os.setpgid(0, 0)
    multiprocessing.set_start_method('fork', force=True)  # what the script has outside of here
    os.environ.update(environ)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdout, sys.stderr = (os.fdopen(number, 'w', buffering=1, closefd=False) for number in (1, 2))
    torch.set_num_threads(1)
    target(arguments)


def run_script(arguments: List[str], fault: Optional[Callable] = None) -> None:
    """Run the script in this process.

    Args:
        arguments: Arguments of its command line.
        fault: Called before the script.
    """
    sys.argv = ['train.py', *arguments]
    if fault is not None:
        fault()
    spec = importlib.util.spec_from_file_location('train_script', SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main()


# Faults. Each is made by a function of its parameters, and can be pickled.

def killed_at_change(number: int, folder: Path) -> Callable:
    """SIGKILL right before the n-th change in a folder."""
    return partial(_watch, folder, partial(_kill_at, number))


def at_update(number: int, act: Callable) -> Callable:
    """Something happens in the n-th update of this process, before its loss is known. It may change the loss."""
    return partial(_at_update, number, act)


def at_baselines(act: Callable) -> Callable:
    """Something happens while the fills are measured, before the first step."""
    return partial(_at_baselines, act)


def kill(loss: torch.Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_group(loss: torch.Tensor) -> None:
    """What the loss of a machine does to an agent of torchrun and its ranks."""
    os.killpg(0, signal.SIGKILL)


def terminate(loss: torch.Tensor) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_group(loss: torch.Tensor) -> None:
    """As schedulers do: loaders of images get the signal, too."""
    os.killpg(0, signal.SIGTERM)


def make_nan(loss: torch.Tensor) -> torch.Tensor:
    return loss * float('nan')


def make_spike(loss: torch.Tensor) -> torch.Tensor:
    return loss * 1e30  # finite, and so are its gradients, whose squares are not


def make_gradients_nan(loss: torch.Tensor) -> torch.Tensor:
    return loss + (loss - loss.detach()).sqrt()  # adds zero, with a slope that has no bound


def fill_disk(size: int) -> Callable:
    """From then on no file can be longer, as on a full disk."""
    return partial(_limit_files, size)


def _limit_files(size: int, loss: torch.Tensor) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def changes_logged(folder: Path, log: Path) -> Callable:
    """No fault: writes down every change in a folder, a line each."""
    return partial(_watch, folder, partial(_log, log))


def killed_inside_save(number: int) -> Callable:
    """SIGKILL when half of the n-th checkpoint is written."""
    return partial(_kill_inside_save, number)


def _watch(folder: Path, act: Callable) -> None:
    """Act right before anything in a folder is opened for writing, linked, renamed or removed."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event == 'open':
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ('os.link', 'os.remove', 'os.rename')
        if changes and str(arguments[0]).startswith(f'{folder}/'):
            count += 1
            act(count, f'{event} {Path(str(arguments[0])).name}')
    sys.addaudithook(hook)


def _kill_at(number: int, count: int, change: str) -> None:
    if count == number:
        os.kill(os.getpid(), signal.SIGKILL)


def _log(log: Path, count: int, change: str) -> None:
    with open(log, 'a') as f:
        f.write(change + '\n')


def _at_update(number: int, act: Callable) -> None:
    forward, count = MaskedImageModelingTask.forward, 0

    def forward_and_act(self, *args, **kwargs) -> dict:
        nonlocal count
        count += 1
        output = forward(self, *args, **kwargs)
        if count == number:
            changed = act(output['loss'])
            output['loss'] = output['loss'] if changed is None else changed
        return output
    MaskedImageModelingTask.forward = forward_and_act


def _at_baselines(act: Callable) -> None:
    baselines = HeldOutImages.baselines

    def act_and_measure(self, *args) -> dict:
        act()
        return baselines(self, *args)
    HeldOutImages.baselines = act_and_measure


def _kill_inside_save(number: int) -> None:
    save, count = torch.save, 0

    def save_half(state, file) -> None:
        nonlocal count
        count += 1
        if count < number:
            save(state, file)
            return
        buffer = io.BytesIO()
        save(state, buffer)
        file.write(buffer.getvalue()[:len(buffer.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    torch.save = save_half
