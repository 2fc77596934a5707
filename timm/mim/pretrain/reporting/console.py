"""What a run prints: a summary at the start and the end, a progress bar or plain lines, and the log file."""

import logging
import sys
import time
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Iterator, List, Optional, Type

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..encoder_files import HUB_FOLDER, fine_tuning_command, hub_lines, loading_lines
from ..errors import RunStopped, one_line
from ..flags.run_options import RunOptions
from ..held_out import HeldOutImages
from ..probes.probes import Probes
from ..run_folder import BEST, ENCODER, LAST, PICTURES, save_results
from ..task import describe_device
from ..trainer import Trainer
from .report import CURVES, REPORT, collect_environment

LOG = 'train.log'

_logger = logging.getLogger(__name__)

_NAMES = dict(
    mean_of_visible='mean of the visible pixels',
    diffusion_fill='diffusion of the visible pixels',
    loss_of_patch_mean='predicting the mean of each patch',
    loss_of_zeros='predicting zeros',
    loss_of_constant='predicting the mean of the targets',
)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that were taken so far: allocated on an accelerator, resident for the CPU.

    Zero where the system does not tell.

    Args:
        device: Device that is trained on.
    """
    backend = getattr(torch, device.type, None)
    if device.type != 'cpu' and hasattr(backend, 'max_memory_allocated'):
        return backend.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


class LogFile:
    """Writes log lines to `train.log`, also those that come before there is a folder, and what ends the run at last.

    Used as a context manager. A run that goes on appends to the lines that are there.
    """

    def __init__(self) -> None:
        self.handler: logging.Handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)

    def open(self, folder: Optional[Path]) -> None:
        """Write to a folder from now on, or nowhere, as all processes but the first do."""
        kept, self.handler = self.handler, logging.NullHandler() if folder is None else _LinesToFile(folder / LOG)
        logging.root.removeHandler(kept)
        logging.root.addHandler(self.handler)
        for record in kept.buffer:
            self.handler.handle(record)

    def __enter__(self) -> 'LogFile':
        logging.root.addHandler(self.handler)
        return self

    def __exit__(
            self,
            kind: Optional[Type[BaseException]],
            error: Optional[BaseException],
            traceback: Optional[TracebackType],
    ) -> None:
        logging.root.removeHandler(self.handler)
        if error is not None:
            if isinstance(error, RunStopped):
                self._write(logging.INFO, f'{error}\n{error.command}')
            else:
                self._write(logging.ERROR, f'{kind.__name__}: {one_line(error)}')
        self.handler.close()

    def _write(self, level: int, message: str) -> None:
        self.handler.handle(logging.makeLogRecord(dict(msg=message, levelno=level)))


class _LinesToFile(logging.FileHandler):
    def __init__(self, path: Path):
        super().__init__(path, encoding='utf-8', errors='backslashreplace')  # names of files need not be text
        self.setFormatter(logging.Formatter('%(asctime)s  %(message)s', datefmt='%Y-%m-%d %H:%M:%S'))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk takes no lines; the next checkpoint ends the run and says so, without a traceback per line."""


class Progress:
    """Reports loss, images per second, memory and the time left.

    Args:
        first_update: Number of updates that were done before, by the run that is resumed.
        num_updates: Number of updates of the whole run.
        images_per_update: Global batch size.
        bar: Show a bar instead of writing lines.
        quiet: Report nothing, as all processes but the first do.
        device: Device that is trained on, whose memory is told.
    """

    def __init__(
            self,
            first_update: int,
            num_updates: int,
            images_per_update: int,
            bar: bool = False,
            quiet: bool = False,
            device: torch.device = torch.device('cpu'),
    ):
        self.num_updates = num_updates
        self.images_per_update = images_per_update
        self.quiet = quiet
        self.device = device
        self.bar: Optional[tqdm] = None
        if bar and not quiet:
            self.bar = tqdm(total=num_updates, initial=first_update, unit='step', dynamic_ncols=True)
        self.last_update = first_update
        self.last_time = time.perf_counter()
        self.seconds_per_update: Optional[float] = None
        self.images_per_second = 0.0

    def advance(self) -> None:
        """Count an update."""
        if self.bar is not None:
            self.bar.update()

    def report(self, epoch: int, update: int, loss: float, learning_rate: float) -> None:
        """Show the state of the run.

        Args:
            epoch: Number of the epoch.
            update: Number of updates done in the whole run.
            loss: Mean loss since the last report.
            learning_rate: Present learning rate.
        """
        now = time.perf_counter()
        seconds = (now - self.last_time) / max(1, update - self.last_update)
        self.last_update, self.last_time = update, now
        # Averaged, so that the time left does not jump.
        previous = self.seconds_per_update
        self.seconds_per_update = seconds if previous is None else 0.7 * previous + 0.3 * seconds
        self.images_per_second = self.images_per_update / max(seconds, 1e-9)
        if self.quiet:
            return
        rate = self.images_per_second
        memory = f'{peak_memory(self.device) / 1e9:.1f} GB'
        if self.bar is not None:
            self.bar.set_postfix_str(f'epoch {epoch}, loss {loss:.4f}, {rate:.1f} images/s, {memory}')
            return
        left = tqdm.format_interval((self.num_updates - update) * self.seconds_per_update)
        _logger.info(
            f'epoch {epoch}  step {update}/{self.num_updates}  loss {loss:.4f}  lr {learning_rate:.2e}  '
            f'{rate:.1f} images/s  {left} left  {memory}')

    def pause(self) -> None:
        """Leave out the time since the last report, which went into something other than training."""
        self.last_time = time.perf_counter()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def lines_above_bar(bar: bool) -> Iterator[None]:
    """Let log lines appear above a bar."""
    if not bar:
        yield
        return
    with logging_redirect_tqdm():
        yield


def wants_bar(distributed: bool) -> bool:
    """Whether there is a terminal that a bar can be drawn on, and only one process to draw."""
    return sys.stderr.isatty() and not distributed


def log_start(
        options: RunOptions,
        from_recipe: List[str],
        data_description: str,
        data_config: Dict[str, Any],
        trainer: Trainer,
        held_out: HeldOutImages,
        folder: Path,
        probes: Optional[Probes] = None,
) -> None:
    """Say what is about to happen, in a few lines."""
    channels, height, width = data_config['input_size']
    parameters = sum(p.numel() for p in trainer.task.get_method().parameters() if p.requires_grad)
    recipe = ', '.join(f'{name} {_short(getattr(options, name))}' for name in from_recipe)
    others = f' and {trainer.process.world_size - 1} more' if trainer.process.distributed else ''
    _logger.info(
        f'{options.mim} with {options.model}: {parameters / 1e6:.1f}M parameters, images of {channels} x {height} x '
        f'{width}, on {trainer.device}{others}')
    _logger.info(describe_device(trainer.device, chosen=options.device is not None))
    environment = collect_environment(trainer.device, trainer.process.world_size)
    _logger.info(', '.join(f'{name} {environment[name]}' for name in ('timm', 'torch', 'python')))
    _logger.info(f'data: {data_description}')
    _logger.info(f'held out: {held_out.num_images} images with {held_out.num_masks} mask(s) each')
    if probes is not None:
        _logger.info(f'probes: {probes.description}')
    _logger.info(f"from the recipe of {options.mim}: {recipe or 'nothing'}")
    _logger.info(
        f'{trainer.num_epochs} epochs of {trainer.updates_per_epoch} steps with {trainer.images_per_update} images, '
        f'learning rate {trainer.learning_rate:.3g} ({options.sched}, {options.warmup_epochs} epochs of warm-up)')
    num_images = trainer.num_images
    if num_images is not None and trainer.images_per_update > num_images:
        _logger.warning(
            f'advice: an update takes {trainer.images_per_update} images, and there are {num_images}: each is in it '
            'several times. Lower --batch-size.')
    if trainer.update:
        _logger.info(f'goes on after step {trainer.update}')
    _logger.info(f'run folder: {folder}')


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ' '.join(_short(v) for v in value)
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def log_end(
        options: RunOptions,
        folder: Path,
        trainer: Trainer,
        results: Dict[str, Any],
        model_args: Dict[str, Any],
        held_out_names: List[str],
) -> None:
    """Write the results, and say what came out, where it lies, how to load it and how to fine-tune it.

    Args:
        options: Options of the run.
        folder: Folder of the run.
        trainer: What was run.
        results: What came out, empty if all epochs were done before.
        model_args: Arguments that the model was built with.
        held_out_names: Names of the held-out images.
    """
    if not results:
        _logger.info(f'{folder}: all {trainer.num_epochs} epochs were done already.')
        return
    lines = loading_lines(folder / ENCODER, options.model, model_args)
    hub = hub_lines(folder)
    command = fine_tuning_command(folder / ENCODER, options, model_args)
    save_results(
        folder / 'summary.json',
        {**results, 'held_out_images': held_out_names, 'load': list(lines), 'hub': list(hub), 'fine_tune': command})
    _say_error(results)
    best = results['best_epoch']
    _logger.info(f'\n{folder}')
    for name, content in (
            (ENCODER, f'encoder of epoch {best}, the best' if best is not None else 'encoder of the last epoch'),
            (f'{HUB_FOLDER}/', "the same with timm's hub configuration"),
            (f'{LAST}, {BEST}' if best is not None else LAST, 'checkpoints'),
            (f'{PICTURES}/', 'what the method sees and predicts of held-out images'),
            ('summary.csv, metrics.jsonl', 'numbers of every evaluation, and of every report'),
            (CURVES, 'the same as curves'),
            (REPORT, 'all of this as a page'),
            (LOG, 'what was said here'),
            ('args.yaml, summary.json', 'options and results of the run'),
    ):
        if all((folder / part).exists() for part in name.split(', ')):
            _logger.info(f'  {name:<38}{content}')
    _logger.info('\nload the encoder:\n  ' + '\n  '.join(lines))
    _logger.info('\nor load and publish it:\n  ' + '\n  '.join(hub))
    _logger.info(f'\nfine-tune it:\n  {command}')


def _say_error(results: Dict[str, Any]) -> None:
    measured = dict(results['last'])
    name = results['metric']
    rows = [(f'this run, last (epoch {results["last_epoch"]})', measured.pop(name))]
    if results['best_epoch'] is not None:
        rows.insert(0, (f'this run, best (epoch {results["best_epoch"]})', results['best']))
    rows += [(_NAMES.get(key, key), value) for key, value in {**measured, **results['baselines']}.items()]
    what = 'masked L1, normalised pixels' if name == 'masked_l1' else name
    _logger.info(f'\nheld-out {what}, same masks for all (lower is better)')
    for label, value in rows:
        _logger.info(f'  {label:<38}{value:.4f}')
    if 'probes' in results:
        _logger.info('\naccuracy of probes of the last encoder, and without training, %')
        for label, value in results['probes'].items():
            _logger.info(f'  {label:<38}{value:.1f}')
            for what, found in results.get('probe_baselines', {}).items():
                if label in found:
                    _logger.info(f'  {label + ", " + what:<38}{found[label]:.1f}')
