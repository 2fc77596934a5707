"""A whole run, from the arguments of a script to the encoder."""
import argparse
import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import torch
import torch.nn as nn
from torch.utils.data import Dataset

from timm.data import resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.utils import init_distributed_device, is_primary, random_seed, reduce_tensor
from ..user_module import import_user_module
from .build_method import create_method
from .checkpoints import check_same_run, load_checkpoint, newest_checkpoint
from .data.datasets import HELD_OUT_LIMIT, file_names, image_mode, open_data
from .data.held_out_share import load_held_out
from .data.loading import create_train_loader
from .data.reading import UnreadableImages
from .data.workers import ending_workers
from .errors import RunStopped, UserError, lost_process, one_line
from .held_out import MASK_SEED, HeldOutImages
from .options import resolve_options
from .probes.probes import Probes
from .reporting.environment import describe_environment
from .reporting.log_file import LogFile
from .reporting.progress import lines_above_bar, wants_bar
from .reporting.records import Records
from .reporting.report import Report
from .reporting.summary import conclude, describe
from .reporting.trackers import check_trackers, open_trackers
from .run_folder import create_run_folder, find_run_folder
from .run_loop import RunLoop
from .stop_signal import StopSignal
from .trainer import Trainer

EXIT_MISTAKE = 2
EXIT_FAILED = 1
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command with --resume auto goes on


def run(args: argparse.Namespace) -> None:
    """Pre-train as the arguments say.

    Ends the program with one line and an exit code where it cannot go on: 2 for a user's mistake, before anything is
    written; 1 for a loss that is not finite, data that cannot be read or a disk that is full; 75 after SIGTERM or
    Ctrl-C, when the run was saved and can go on.

    Args:
        args: The arguments that the user gave; what was not given is absent or None.
    """
    with exit_codes(), LogFile() as log:
        _run(args, log)


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the program with one line and an exit code where it cannot go on."""
    try:
        yield
    except UserError as e:
        _exit(e, EXIT_MISTAKE)
    except RunStopped as e:
        _exit(e, EXIT_STOPPED)
    except (FloatingPointError, UnreadableImages) as e:
        _exit(e, EXIT_FAILED)
    except OSError as e:
        _exit(e, EXIT_FAILED, alone=True)
    except RuntimeError as e:
        lost = lost_process(e)
        if lost is None:
            raise
        _exit(lost, EXIT_FAILED, alone=True)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _exit(error: Exception, code: int, alone: bool = False) -> None:
    """End the program with a line, which one process prints for all unless it is alone with the error."""
    rank, script = int(os.environ.get('RANK', 0)), os.path.basename(sys.argv[0])
    if alone and rank:
        script = f'{script}: rank {rank}'
    if alone or rank == 0:
        print(f'{script}: error: {one_line(error)}', file=sys.stderr)
    raise SystemExit(code)


def _run(args: argparse.Namespace, log: LogFile) -> None:
    if not hasattr(torch, 'compiler'):
        raise UserError(f'--mim needs PyTorch 2.1 or newer, this is {torch.__version__}.')
    import_mim_module(args)
    options, from_recipe = resolve_options(args)
    _import_device_modules(options)
    check_trackers(options)
    folder = find_run_folder(options)
    checkpoint = _find_checkpoint(options, folder)
    mode = image_mode(options.in_chans, options.input_img_mode)
    data = open_data(options, mode)
    random_seed(options.seed)
    method, model_args = create_method(options)
    place = find_place(options)
    data_config = resolve_image_config(options, method, mode)
    method.set_image_statistics(data_config['mean'], data_config['std'])
    device = torch.device(place.device)
    train_loader = create_train_loader(data.train, options, data_config, device, place.rank, place.world_size)
    held_out = hold_out(data.held_out, options, data_config, place)

    with StopSignal() as stop, ending_workers(train_loader):
        if not options.fsdp:  # shards are moved one by one
            method = method.to(device)
        trainer = Trainer(options, method, train_loader, place, stop, checkpoint)
        # once the trainer may have sharded the method
        probes = Probes(options, trainer.trained_method, data_config, place) if options.mim_probe_dir else None
        if not is_primary(place):
            log.open(None)
            RunLoop(trainer, held_out, folder, None, checkpoint, probes).train()
            return
        bar = wants_bar(place.distributed)
        with open_trackers(options, folder, trainer.update) as trackers, lines_above_bar(bar):
            create_run_folder(folder, options)
            log.open(folder)
            describe(options, from_recipe, data.description, data_config, trainer, held_out, folder, probes)
            report = Report(folder, options, model_args, describe_environment(device, place.world_size))
            records = Records(folder, data_config, trainer.update, trainer.updates_per_epoch, trackers, report)
            results = RunLoop(trainer, held_out, folder, records, checkpoint, probes).train(bar)
            conclude(options, folder, trainer, results, model_args, file_names(data.held_out))


def import_mim_module(args: argparse.Namespace) -> None:
    name = getattr(args, 'mim_module', None)
    try:
        if name:
            import_user_module(name)
    except ImportError as e:
        raise UserError(f'--mim-module {name}: {one_line(e)}') from e


def _import_device_modules(options: argparse.Namespace) -> None:
    for module in options.device_modules or []:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UserError(f'--device-modules {module}: {one_line(e)}') from e


def _find_checkpoint(options: argparse.Namespace, folder: Path) -> Optional[Path]:
    """Find the checkpoint to go on from, and check that it is one of such a run."""
    path = newest_checkpoint(folder) if options.resume == 'auto' else options.resume and Path(options.resume)
    if not path:
        return None
    check_same_run(load_checkpoint(path), path, options)
    return path


def find_place(options: argparse.Namespace) -> argparse.Namespace:
    """Find the device and the rank of this process, in a namespace of its own: args.yaml says what the user gave."""
    place = argparse.Namespace(device=options.device)
    if options.fsdp and int(os.environ.get('WORLD_SIZE', 1)) < 2:
        raise UserError('--fsdp shards a model over processes, and there is one: start the script with torchrun.')
    if init_distributed_device(place).type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return place


def resolve_image_config(options: argparse.Namespace, method: nn.Module, mode: str) -> Dict[str, Any]:
    """Input size, mean, standard deviation, interpolation, crop and mode of the images."""
    config = resolve_data_config(
        dict(
            input_size=(options.in_chans, *method.img_size),
            mean=options.mean,
            std=options.std,
            interpolation=options.interpolation,
            crop_pct=options.crop_pct,
        ),
        model=method.backbone,
    )
    for name in ('mean', 'std'):
        values = config[name]
        if len(values) != options.in_chans:  # the model's statistics are of RGB images
            config[name] = adapt_to_chs(sum(values) / len(values), options.in_chans)
    return {**config, 'mode': mode}


def hold_out(
        dataset: Dataset,
        options: argparse.Namespace,
        data_config: Dict[str, Any],
        place: argparse.Namespace,
        limit: int = HELD_OUT_LIMIT,
        mask_seed: int = MASK_SEED,
) -> HeldOutImages:
    """Load this process's share of the images to measure on, at most so many over all processes.

    Raises:
        UnreadableImages: More of them cannot be read than the user allows.
        UserError: There are none.
    """
    device = torch.device(place.device)
    share = load_held_out(dataset, options, data_config, device, place.rank, place.world_size, limit)
    counts = torch.tensor([float(len(share.images)), float(share.unreadable)], device=device)
    if place.distributed:
        counts = reduce_tensor(counts, 1)
    count, unreadable = map(int, counts.tolist())
    if unreadable > options.max_unreadable * (count + unreadable):
        raise UnreadableImages(
            f'{unreadable} of the {count + unreadable} images that are held out cannot be read: remove or replace '
            f'them, or allow more than --max-unreadable {options.max_unreadable:g}.')
    if not count:
        raise UserError('--val-split: there is no image to hold out.')
    return HeldOutImages(
        share.images,
        share.numbers,
        count,
        device,
        options.validation_batch_size or options.batch_size,
        in_step=options.fsdp,
        mask_seed=mask_seed,
    )
