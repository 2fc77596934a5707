import importlib.util
import logging
import shlex
from pathlib import Path

import pytest
import torch
import tiny_runs
from tiny_runs import SCRIPT, SUPERVISED, write_images, write_labelled_images

pytest.register_assert_rewrite('run_folders')


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    """Tiny tensors gain nothing from threads, tests run side by side, and equal bits need an equal number of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def script():
    """The training script as a module."""
    spec = importlib.util.spec_from_file_location('train_script', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def train(script):
    """Runs the script in this process, with the flags of a tiny run and some more."""
    def run(flags: str, tiny: bool = True) -> None:
        arguments = shlex.split(tiny_runs.tiny(flags) if tiny else flags)
        handlers, level = list(logging.root.handlers), logging.root.level
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('sys.argv', ['train.py', *arguments])
            try:
                script.main()
            finally:
                logging.root.handlers[:] = handlers
                logging.root.setLevel(level)
    return run


@pytest.fixture(scope='session')
def images(tmp_path_factory) -> Path:
    """A flat folder of 16 images without labels."""
    folder = tmp_path_factory.mktemp('images')
    write_images(folder, 16)
    return folder


@pytest.fixture(scope='session')
def finished_run(train, images, tmp_path_factory) -> Path:
    """The folder of a run of six epochs that has learned something."""
    output = tmp_path_factory.mktemp('output')
    train(f'--data-dir {images} --output {output} --experiment run --epochs 6 --epoch-repeats 4 --lr 2e-3')
    return output / 'run'


@pytest.fixture(scope='session')
def labelled(tmp_path_factory) -> Path:
    """A folder of training and validation images of two colours, which any model can tell apart."""
    folder = tmp_path_factory.mktemp('labelled')
    write_labelled_images(folder)
    return folder


@pytest.fixture(scope='session')
def supervise(train, labelled):
    """Runs the script on those, in this process, and returns the run folder."""
    def run(flags: str, output: Path) -> Path:
        train(f'{SUPERVISED} --data-dir {labelled} --output {output} --experiment run {flags}', tiny=False)
        return output / 'run'
    return run
