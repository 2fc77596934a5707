"""A reader of the documentation: a folder with the files that it takes for granted, in which commands run."""
import io
import itertools
import logging
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple
from unittest import mock

import torch
from torch.distributed import run as torch_run

import timm
from commands import documented_commands
from pages import ROOT
from reference_tensors import facebook_ijepa, facebook_mae, fill, microsoft_swin
from reference_tensors_convolutional import convnext, filled, resnet, spark, spark_file
from small_commands import appended, value_of
from timm.mim import factory
from tiny_runs import environment, write_images

INPUTS = ('--resume', '--checkpoint', '--pretrained-path', '--class-stats')  # flags that name a file of another command
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # torchrun takes them and keeps them


class Outcome(NamedTuple):
    """What a command came to.

    Attributes:
        words: Words of the command, as documented.
        output: What it printed.
        experiment: Name of its run, if it is one.
    """
    words: Sequence[str]
    output: str
    experiment: str


class Reader:
    """Runs commands in a folder, each once.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.commands = [command.words for command in documented_commands()]
        self.outcomes: Dict[Tuple[str, ...], Outcome] = {}
        self.numbers = itertools.count()
        make_files(folder)

    def run(self, words: Tuple[str, ...]) -> Outcome:
        """Run a command word by word, with something appended, after those before it that make what it reads.

        Raises:
            SystemExit: The exit code is not 0.
        """
        if words[0] == 'make':
            return [self.run(line) for line in lines_of_make(words)][-1]
        if words not in self.outcomes:
            for path in read_by(words):
                self._make(path, itertools.takewhile(lambda earlier: earlier != words, self.commands))
            experiment = value_of(words, '--experiment') or f'command-{next(self.numbers)}'
            with in_folder(self.folder) as output:
                run_program(words, experiment)
            self.outcomes[words] = Outcome(words, output.buffer.getvalue().decode(), experiment)
        return self.outcomes[words]

    def _make(self, path: str, earlier: Iterable[Tuple[str, ...]]) -> None:
        for words in earlier:
            if (self.folder / path).exists():
                return
            if path in words or value_of(words, '--experiment') in Path(path).parts:
                self.run(words)


def make_files(folder: Path) -> None:
    """Make what pages take for granted: scripts, images, and published checkpoints in which weights are random."""
    for name in ('train.py', 'validate.py', 'class_weights.py', 'recipes', 'examples', 'tests'):
        (folder / name).symlink_to(ROOT / name)
    write_images(folder / 'IMAGES', 12)
    for number in range(20):
        for name in ('LABELLED', 'FOLDER'):
            write_images(folder / name / ('train', 'val')[number // 10] / f'class{number % 10}', 2, seed=number)
    # ViT have the published widths, of which the numbers of heads are known
    mae = partial(facebook_mae, width=768, depth=1, patches=16, patch=16)
    ijepa = facebook_ijepa(width=1280, depth=1, hidden=5120, predictor_width=384, patches=36, patch=14)
    swin = microsoft_swin(width=32, depths=(2, 1, 1, 1), heads=(1, 2, 4, 8), window=6, size=96)
    torch.save(dict(model=mae(decoder_width=512, decoder_depth=1)), folder / 'mae_visualize_vit_base.pth')
    torch.save(dict(model=mae(encoder=True)), folder / 'mae_pretrain_vit_base.pth')
    torch.save(ijepa, folder / 'IN1K-vit.h.14-300e.pth.tar')
    torch.save(
        spark_file(filled(spark(resnet(), (512, 256, 128, 64))), 'resnet18'),
        folder / 'resnet50_withdecoder_1kpretrained_spark_style.pth')
    torch.save(dict(model=fill(convnext())), folder / 'convnextv2_base_1k_224_fcmae.pt')
    torch.save(dict(model=swin), folder / 'simmim_pretrain__swin_base__img192_window6__800ep.pth')


def published_weights(model_id: str, *args, **kwargs) -> Dict[str, torch.Tensor]:
    """What the hub would give, but for the numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.device('meta'):
        tensors = timm.create_model(model_id.split('/')[1]).state_dict()
    return {name: torch.randn(tensor.shape, generator=generator) * 0.02 for name, tensor in tensors.items()}


def read_by(words: Sequence[str]) -> List[str]:
    """Paths of files that a command reads, and another one writes."""
    if words[:3] == ('python', '-m', 'timm.mim.convert'):
        return [words[3]]
    return [value_of(words, flag) for flag in INPUTS if value_of(words, flag) not in ('', 'auto')]


@contextmanager
def in_folder(folder: Path) -> Iterator[io.TextIOWrapper]:
    """Work in a folder without a network, and leave no trace in this process. What is printed goes to the result."""
    output = io.TextIOWrapper(io.BytesIO(), write_through=True)
    with ExitStack() as stack:
        for context in (
                redirect_stdout(output), redirect_stderr(output), mock.patch.dict(os.environ),
                mock.patch.object(factory, '_methods', dict(factory._methods)),
                mock.patch('timm.models._builder.load_state_dict_from_hf', published_weights)):
            stack.enter_context(context)
        stack.callback(forget_user_modules)
        stack.callback(os.chdir, os.getcwd())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(logging.root.setLevel, logging.root.level)
        stack.callback(logging.root.handlers.__setitem__, slice(None), list(logging.root.handlers))
        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.getsignal(number))
        os.chdir(folder)
        torch.set_num_threads(1)
        yield output


def forget_user_modules() -> None:
    """Let `--mim-module` import them again, as the methods that they registered are gone."""
    for name in [name for name in sys.modules if name.startswith('maskfeat (')]:
        del sys.modules[name]


def run_program(words: Sequence[str], experiment: str) -> None:
    if words[0] == 'torchrun':
        run_torchrun(words[1:], experiment)
    elif words[:2] == ('python', 'examples/digits.py'):
        run_small_demo(words[1:])
    else:
        assert words[0] == 'python', f'nothing here runs {words[0]}'
        run_python([*words[1:], *appended(words[1:], experiment)])


def run_python(words: Sequence[str]) -> None:
    """`python ...` in this process."""
    with mock.patch('sys.argv', list(words)):
        try:
            if words[0] == '-m':
                sys.argv[:] = words[1:]
                runpy.run_module(words[1], run_name='__main__', alter_sys=True)
            else:
                runpy.run_path(words[0], run_name='__main__')
        except SystemExit as end:
            if end.code:
                raise


def run_torchrun(words: Sequence[str], experiment: str) -> None:
    """`torchrun ...` with two processes, forked from one that has imported everything instead of started anew."""
    args = torch_run.get_args_parser().parse_args(words)
    script = [*['-m'] * args.module, args.training_script, *args.training_script_args]
    more = appended(script, experiment)
    config_from_args = torch_run.config_from_args

    def forked(args):
        config = replace(config_from_args(args)[0], start_method='forkserver')
        return config, _run_worker, [os.getcwd(), *script, *more]

    multiprocessing.set_forkserver_preload(['child_runs'])
    os.environ.update(environment())
    with mock.patch.object(torch_run, 'config_from_args', forked):
        torch_run.main([*words[:-len(script)], '--nproc_per_node', '2', *script])


def _run_worker(folder: str, *words: str) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    run_python(words)


def run_small_demo(words: Sequence[str]) -> None:
    """The demonstration with next to no training, in a thread."""
    demo = import_module('examples.digits')
    with ExitStack() as stack:
        for name in ('PRETRAINING', 'FINE_TUNING'):
            stack.enter_context(mock.patch.dict(getattr(demo, name), steps=2))
        stack.enter_context(mock.patch.object(demo, 'ProcessPoolExecutor', lambda *_, **__: ThreadPoolExecutor(1)))
        stack.enter_context(mock.patch('sys.argv', [*words, '--seeds', '2']))
        demo.main()


def lines_of_make(words: Sequence[str]) -> List[Tuple[str, ...]]:
    """The commands that make runs once it has set itself up."""
    settings = {name: value for name, value in os.environ.items() if name not in ('ARGS', 'MAKEFLAGS')}  # make test's
    command = ['make', '-C', str(ROOT), '--no-print-directory', '-n', '-o', '.venv/installed', *words[1:]]
    lines = subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout.splitlines()
    return [tuple(shlex.split(re.sub(r'^\.venv/bin/', '', line))) for line in lines]
