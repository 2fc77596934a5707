"""A whole run, from the arguments of a script to the encoder."""
import argparse
from pathlib import Path
from typing import Optional, Tuple

import torch

from timm.utils import is_primary, random_seed
from .build_method import create_method, import_mim_module
from .checkpoints import Checkpoint, load_checkpoint
from .data.datasets import file_names, open_data
from .data.image_config import image_mode, resolve_image_config
from .data.image_names import fingerprint
from .data.loading import create_train_loader
from .data.workers import ending_workers
from .errors import UserError
from .exit_codes import exit_codes
from .folder_lock import FolderLock
from .held_out import hold_out
from .options import resolve_options
from .place import find_place, import_device_modules
from .probes.probes import Probes
from .reporting.environment import describe_environment
from .reporting.log_file import LogFile
from .reporting.progress import lines_above_bar, wants_bar
from .reporting.records import Records
from .reporting.report import Report
from .reporting.summary import conclude, describe
from .reporting.trackers import check_trackers, open_trackers
from .resume import check_same_data, find_checkpoint
from .run_folder import claim_run_folder, save_options
from .run_loop import RunLoop
from .stop_signal import StopSignal
from .trainer import Trainer


def run(args: argparse.Namespace) -> None:
    """Pre-train as the arguments say.

    Ends the program with one line and an exit code where it cannot go on: 2 for a user's mistake, before anything is
    written; 1 for a loss that is not finite, data that cannot be read or a disk that is full; 75 after SIGTERM or
    Ctrl-C, when the run was saved and can go on.

    Args:
        args: The arguments that the user gave; what was not given is absent or None.
    """
    with exit_codes(), FolderLock() as lock, LogFile() as log:
        _run(args, log, lock)


def _run(args: argparse.Namespace, log: LogFile, lock: FolderLock) -> None:
    import_mim_module(args)
    options, from_recipe = resolve_options(args)
    import_device_modules(options)
    check_trackers(options)
    place = find_place(options)
    folder, checkpoint = _begin(options, place, lock)
    mode = image_mode(options.in_chans, options.input_img_mode)
    data = open_data(options, mode)
    images = fingerprint(data.train, data.held_out)
    if checkpoint is not None:
        check_same_data(checkpoint, images, tell=is_primary(place))
    random_seed(options.seed)
    method, model_args = create_method(options)
    data_config = resolve_image_config(options, method, mode)
    method.set_image_statistics(data_config['mean'], data_config['std'])
    device = torch.device(place.device)
    train_loader = create_train_loader(data.train, options, data_config, device, place.rank, place.world_size)
    held_out = hold_out(data.held_out, options, data_config, place)

    with StopSignal() as stop, ending_workers(train_loader):
        if not options.fsdp:  # shards are moved one by one
            method = method.to(device)
        trainer = Trainer(options, method, train_loader, place, stop, checkpoint, images)
        # once the trainer may have sharded the method
        probes = Probes(options, trainer.trained_method, data_config, place) if options.mim_probe_dir else None
        if not is_primary(place):
            log.open(None)
            RunLoop(trainer, held_out, folder, None, checkpoint, probes).train()
            return
        bar = wants_bar(place.distributed)
        with open_trackers(options, folder, trainer.update) as trackers, lines_above_bar(bar):
            save_options(folder, options)
            log.open(folder)
            describe(options, from_recipe, data.description, data_config, trainer, held_out, folder, probes)
            report = Report(folder, options, model_args, describe_environment(device, place.world_size))
            records = Records(
                folder, data_config, trainer.update, trainer.updates_per_epoch, trackers, report, options.warmup_epochs)
            results = RunLoop(trainer, held_out, folder, records, checkpoint, probes).train(bar)
            conclude(options, folder, trainer, results, model_args, file_names(data.held_out))


def _begin(
        options: argparse.Namespace,
        place: argparse.Namespace,
        lock: FolderLock,
) -> Tuple[Path, Optional[Checkpoint]]:
    """Claim the folder of the run, and load the checkpoint to go on from. The first process decides for all."""
    folder = checkpoint = error = None
    if is_primary(place):
        try:
            folder = claim_run_folder(options, lock)
            checkpoint = find_checkpoint(options, folder)
        except (OSError, UserError) as e:
            error = e
    if place.distributed:
        decided = [folder, None if checkpoint is None else (checkpoint.path, checkpoint.in_place), error]
        torch.distributed.broadcast_object_list(decided, src=0)
        folder, found, error = decided
        if found is not None and checkpoint is None:
            checkpoint = _load_as_first_process(*found)
    if error is not None:
        raise error
    return folder, checkpoint


def _load_as_first_process(path: Path, in_place: bool) -> Checkpoint:
    """Load the checkpoint that the first process found and verified.

    Raises:
        OSError: This process cannot read it.
    """
    try:
        return load_checkpoint(path, verify=False)._replace(in_place=in_place)
    except UserError as e:
        raise OSError(f'{e} The first process has read it.') from e
