"""Print a summary at the start and the end of a run, print progress as a bar or as lines, and write the log file."""

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

from ..checkpoints import BEFORE_TRAINING
from ..encoder_files import HUB_FOLDER, fine_tuning_command, hub_lines, loading_lines
from ..errors import RunStopped, one_line
from ..flags.run_options import RunOptions
from ..held_out import HeldOutImages
from ..probes.probes import Probes
from ..processes import describe_device
from ..run_folder import BEST, ENCODER, EXTENSIONS, LAST, PICTURES, save_results
from ..trainer import Trainer
from .report import CURVES, REPORT, collect_environment, title_of

LOG = 'train.log'

_logger = logging.getLogger(__name__)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: allocated on an accelerator, resident in main memory on the CPU.

    Args:
        device: Device of the training.

    Returns:
        The number of bytes, 0 if the system does not report it.
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
    """Writes log lines to `train.log`, including those from before the folder exists, and the error that ends a run.

    Use it as a context manager. A resumed run appends to the file.
    """

    def __init__(self) -> None:
        self.handler: logging.Handler = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1)

    def open(self, folder: Optional[Path]) -> None:
        """Write the lines kept so far and all later lines to a folder. With None, as on all processes but the first,
        discard them.
        """
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
        super().__init__(path, encoding='utf-8', errors='backslashreplace')  # file names may hold invalid text
        self.setFormatter(logging.Formatter('%(asctime)s  %(message)s', datefmt='%Y-%m-%d %H:%M:%S'))

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line. On a full disk the next checkpoint ends the run with an error, so no traceback is needed."""


class Progress:
    """Reports the loss, images per second, memory and the remaining time.

    Args:
        first_update: Number of updates that the resumed run had done before.
        num_updates: Number of updates of the whole run.
        images_per_update: Number of images per update, over all processes.
        bar: Show a progress bar instead of logging lines.
        quiet: Report nothing, as on all processes but the first.
        device: Device of the training, whose memory is reported.
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
        """Advance the bar by one update."""
        if self.bar is not None:
            self.bar.update()

    def report(self, epoch: int, update: int, loss: float, learning_rate: float) -> None:
        """Show the loss, the speed and the remaining time.

        Args:
            epoch: Number of the epoch, from 0.
            update: Number of updates done in the whole run.
            loss: Mean loss since the last report.
            learning_rate: Current learning rate.
        """
        now = time.perf_counter()
        seconds = (now - self.last_time) / max(1, update - self.last_update)
        self.last_update, self.last_time = update, now
        # A moving average keeps the remaining time from jumping.
        previous = self.seconds_per_update
        self.seconds_per_update = seconds if previous is None else 0.7 * previous + 0.3 * seconds
        self.images_per_second = self.images_per_update / max(seconds, 1e-9)
        if self.quiet:
            return
        rate = self.images_per_second
        memory = f'{peak_memory(self.device) / 1e9:.1f} GB'
        if self.bar is not None:
            self.bar.set_postfix_str(f'epoch {epoch + 1}, loss {loss:.4f}, {rate:.1f} images/s, {memory}')
            return
        left = tqdm.format_interval((self.num_updates - update) * self.seconds_per_update)
        _logger.info(
            f'epoch {epoch + 1}  step {update}/{self.num_updates}  loss {loss:.4f}  lr {learning_rate:.2e}  '
            f'{rate:.1f} images/s  {left} left  {memory}')

    def pause(self) -> None:
        """Exclude the time since the last report from the speed, for example after an evaluation."""
        self.last_time = time.perf_counter()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def lines_above_bar(bar: bool) -> Iterator[None]:
    """Print log lines above the progress bar, if there is one."""
    if not bar:
        yield
        return
    with logging_redirect_tqdm():
        yield


def wants_bar(distributed: bool) -> bool:
    """Return whether to show a progress bar: on a terminal, with a single process."""
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
    """Log the model, the data and the main options at the start of a run."""
    channels, height, width = data_config['input_size']
    parameters = sum(p.numel() for p in trainer.task.get_method().parameters() if p.requires_grad)
    recipe = ', '.join(f'{name} {_short(getattr(options, name))}' for name in from_recipe)
    others = f' and {trainer.process.world_size - 1} more' if trainer.process.distributed else ''
    images = f'images of {channels} x {height} x {width}'
    if options.naflex_loader:
        lengths = ', '.join(map(str, sorted(set(options.naflex_train_seq_lens))))
        images = f'images of any shape with {channels} channel(s), in up to {lengths} patches'
    _logger.info(
        f'{options.mim} with {options.model}: {parameters / 1e6:.1f}M parameters, {images}, on {trainer.device}'
        f'{others}')
    _logger.info(describe_device(trainer.device, chosen=options.device is not None))
    environment = collect_environment(trainer.device, trainer.process.world_size)
    _logger.info(', '.join(f'{name} {environment[name]}' for name in ('timm', 'torch', 'python')))
    _logger.info(f'data: {data_description}')
    _logger.info(f'held out: {held_out.num_images} images with {held_out.num_masks} mask(s) each')
    if probes is not None:
        _logger.info(f'probes: {probes.description}')
    _logger.info(f"defaults of {options.mim}: {recipe or 'none'}")
    _logger.info(
        f'{trainer.num_epochs} epochs of {trainer.updates_per_epoch} steps with {trainer.images_per_update} images, '
        f'learning rate {trainer.learning_rate:.3g} ({options.sched}, {options.warmup_epochs} epochs of warm-up)')
    num_images = trainer.num_images
    if num_images is not None and trainer.images_per_update > num_images:
        _logger.warning(
            f'advice: an update has {trainer.images_per_update} images, but the training set has only {num_images}, so '
            'images repeat within an update. Lower --batch-size.')
    if trainer.update:
        _logger.info(f'resuming after step {trainer.update}')
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
    """Write `summary.json`, and log the results, the files, and how to load, publish and fine-tune the encoder.

    Args:
        options: Options of the run.
        folder: Folder of the run.
        trainer: Trainer of the run.
        results: Results of the run, empty if all epochs were already done.
        model_args: Arguments with which the model was created.
        held_out_names: Names of the held-out images.
    """
    if not results:
        _logger.info(f'{folder}: all {trainer.num_epochs} epochs were already done.')
        return
    lines = loading_lines(folder / ENCODER, options.model, model_args)
    hub = hub_lines(folder)
    command = fine_tuning_command(folder / ENCODER, options, model_args)
    save_results(
        folder / 'summary.json',
        {**results, 'held_out_images': held_out_names, 'load': list(lines), 'hub': list(hub), 'fine_tune': command})
    _log_results(results)
    best = results['best_epoch']
    kept = (LAST,) if best in (None, BEFORE_TRAINING) else (LAST, BEST)
    _logger.info(f'\n{folder}')
    for name, content in (
            (ENCODER, _which_encoder(best)),
            (f'{HUB_FOLDER}/', "the same with timm's hub configuration"),
            *((', '.join(f'{name}{extension}' for name in kept), 'checkpoints') for extension in EXTENSIONS),
            (f'{PICTURES}/', 'what the method sees and predicts of held-out images'),
            ('summary.csv, metrics.jsonl', 'metrics of every evaluation, and of every report'),
            (CURVES, 'the same metrics as curves'),
            (REPORT, 'all of this as an HTML page'),
            (LOG, 'these log lines'),
            ('args.yaml, summary.json', 'options and results of the run'),
    ):
        if all((folder / part).exists() for part in name.split(', ')):
            _logger.info(f'  {name:<38}{content}')
    _logger.info('\nload the encoder:\n  ' + '\n  '.join(lines))
    _logger.info('\nor load and publish it:\n  ' + '\n  '.join(hub))
    _logger.info(f'\nfine-tune it:\n  {command}')


def _which_encoder(best: Optional[int]) -> str:
    if best == BEFORE_TRAINING:
        return 'encoder before training: no epoch was better'
    return 'encoder of the last epoch' if best is None else f'encoder of epoch {best + 1}, the best'


def _log_results(results: Dict[str, Any]) -> None:
    measured = dict(results['last'])
    name = results['metric']
    rows = [(f'this run, last (epoch {results["last_epoch"] + 1})', measured.pop(name))]
    by_probe = results.get('best_by', name) != name
    if results['best_epoch'] is not None and not by_probe:
        rows.insert(0, (f'this run, best (epoch {results["best_epoch"] + 1})', results['best']))
    rows += [(title_of(key), value) for key, value in {**measured, **results['baselines']}.items()]
    what = 'masked L1, normalised pixels' if name == 'masked_l1' else name
    _logger.info(f'\nheld-out {what}, same masks for all (lower is better)')
    for label, value in rows:
        _logger.info(f'  {label:<38}{value:.4f}')
    if 'probes' in results:
        _logger.info('\naccuracy of probes of the last encoder, and without training, %')
        if by_probe:
            epoch = results['best_epoch']
            best = 'before training' if epoch == BEFORE_TRAINING else f'epoch {epoch + 1}'
            _logger.info(f'  {results["best_by"] + ", best (" + best + ")":<38}{results["best"]:.1f}')
        for label, value in results['probes'].items():
            _logger.info(f'  {label:<38}{value:.1f}')
            for what, found in results.get('probe_baselines', {}).items():
                if label in found:
                    _logger.info(f'  {label + ", " + what:<38}{found[label]:.1f}')
