"""Run pre-training from start to end: build the parts, then train, evaluate, report and save in every epoch."""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import torch
import torch.nn as nn

from timm.utils import is_primary, random_seed
from ..checkpoint_folder import has_folders
from .building import built_in
from .checkpoints import Checkpoint, load_checkpoint
from .data.datasets import file_names, image_mode, measure_statistics, open_data, resolve_image_config
from .data.image_folder import fingerprint, num_images
from .data.loading import create_train_loader, ending_workers
from .encoder_files import save_encoder
from .errors import RunStopped, StopSignal, UserError, exit_codes
from .flags.run_options import RunOptions
from .held_out import HeldOutImages
from .hold_out import hold_out
from .options import resolve_options
from .plan import plan
from .probes.probes import Probes
from .processes import import_device_modules, init_process
from .reporting.console import LogFile, Progress, lines_above_bar, log_end, log_start, peak_memory, wants_bar
from .reporting.records import Records, check_trackers, open_trackers
from .reporting.report import Report, collect_environment, go_on_command, typed_command
from .resume import check_same_data, find_checkpoint, take_measured
from .run_folder import FILE, FOLDER, LAST, FolderLock, claim_run_folder, save_options
from .run_saver import BackgroundWriter, RunSaver, sharded_tensors
from .sharding import whole
from .task import create_method, import_mim_module
from .trainer import Trainer

_logger = logging.getLogger(__name__)
_PICTURE_ROWS = 4
BEFORE = 'encoder before training'  # its name among the baselines of probes


class RunLoop:
    """Runs a trainer to the end of its schedule. Every process has a loop; only the first process writes files.

    Args:
        trainer: Trainer to run.
        held_out: Held-out images.
        folder: Folder of the run.
        records: Records of the run; None on all processes but the first.
        checkpoint: Checkpoint that the trainer resumed from.
        probes: Probes of the encoder; None if the user asked for none.
    """

    def __init__(
            self,
            trainer: Trainer,
            held_out: HeldOutImages,
            folder: Path,
            records: Optional[Records],
            checkpoint: Optional[Checkpoint] = None,
            probes: Optional[Probes] = None,
    ):
        self.trainer = trainer
        self.options = trainer.options
        self.held_out = held_out
        self.folder = folder
        self.records = records
        self.probes = probes
        self.saver = None
        self.results: Dict[str, Any] = {}
        may_write = has_folders and self.options.checkpoint_format != 'file'
        self.writer = BackgroundWriter(folder, may_write and trainer.process.distributed, self.options.fsdp)
        if is_primary(trainer.process):
            self.saver = RunSaver(folder, self.options, trainer.task, trainer.optimizer, trainer.scaler, self.writer)
            if checkpoint is not None and checkpoint.in_place:
                self.saver.take_up(checkpoint)
                self.results = checkpoint.content.get('results', {})

    def train(self, bar: bool = False) -> Dict[str, Any]:
        """Train to the last epoch.

        Args:
            bar: Show a progress bar.

        Returns:
            Results of the run. If all epochs were already done: the results in the checkpoint, or none if the
            checkpoint is in another folder.

        Raises:
            RunStopped: A signal stopped the run, and its state is saved.
        """
        trainer = self.trainer
        first_epoch = trainer.update // trainer.updates_per_epoch
        if first_epoch >= trainer.last_epoch:
            return self.results
        self._stop_if_asked()
        self.results['baselines'] = self.held_out.baselines(trainer.trained_method, trainer.autocast)
        if self.probes is not None and 'probe_baselines' not in self.results:
            self.results['probe_baselines'] = self._probe_baselines()
            if trainer.update == 0:
                self._begin_with(self.results['probe_baselines'][BEFORE])
        self._stop_if_asked()
        progress = Progress(
            trainer.update,
            trainer.last_epoch * trainer.updates_per_epoch,
            trainer.mean_images_per_update,
            bar=bar,
            quiet=self.saver is None,
            device=trainer.device,
        )
        try:
            for epoch in range(first_epoch, trainer.last_epoch):
                self._run_epoch(epoch, progress)
            self.writer.wait()
        finally:
            progress.close()
            self._finish_writing()
        return self.results

    def _finish_writing(self) -> None:
        """Finish the checkpoint that is being written when an error ends the run."""
        try:
            self.writer.wait()
        except OSError as e:
            _logger.warning(e)

    def _probe_baselines(self) -> Dict[str, Dict[str, float]]:
        """Probe the pixels, and also the untrained encoder if the run starts at its first update."""
        trainer = self.trainer
        accuracies = {'pixels': self.probes.measure_pixels()}
        if trainer.update == 0:
            accuracies[BEFORE] = self.probes.measure(trainer.trained_method, trainer.autocast)
        return accuracies

    def _begin_with(self, accuracies: Dict[str, float]) -> None:
        """Record the accuracies of the encoder before training; with --mim-probe-best keep it until one is better."""
        if self.saver is not None:
            self.records.add_start(accuracies)
        if self.options.mim_probe_best:
            method = self.trainer.trained_method
            encoder = whole(method.encoder.state_dict(), keep=self.saver is not None)
            if self.saver is not None:
                self.saver.begin_with(accuracies[self.probes.names[0]])
                save_encoder(self.folder, encoder, method.encoder, self.records.data_config, tag=self.options.mim)

    def _warn_if_worse(self, accuracies: Dict[str, float]) -> None:
        """Warn about probes whose accuracy has fallen below that of the encoder before training."""
        start = self.results['probe_baselines'].get(BEFORE, {})
        worse = [
            f'{name} {value:.1f} % after {start[name]:.1f} %' for name, value in accuracies.items()
            if name in start and value < start[name]]
        if worse:
            _logger.warning(
                f'advice: the encoder is worse than before training: {", ".join(worse)}, on {self.probes.num_tested} '
                'images. Lower --lr or --layer-decay, or train less; --mim-probe-best keeps the best encoder, even '
                'if it is the one before training.')

    def _run_epoch(self, epoch: int, progress: Progress) -> None:
        self._train_epoch(epoch, progress)
        completed = self.trainer.update == (epoch + 1) * self.trainer.updates_per_epoch
        if completed and self._is_due(epoch + 1):
            self.evaluate(epoch)
            progress.pause()
            if epoch + 1 < self.trainer.last_epoch:  # the last epoch ends the run anyway
                self._stop_if_asked()
        elif self.trainer.stopping:
            self._save_within(epoch)
            self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """End the run if some process got a signal to stop. Call this only after saving, or before the first update.

        Raises:
            RunStopped: Some process got a signal to stop.
        """
        trainer = self.trainer
        if trainer.is_asked_to_stop():
            self.writer.wait()
            last = trainer.last_epoch * trainer.updates_per_epoch
            saved = f'saved after step {trainer.update} of {last}' if trainer.update else 'before the first step'
            command = go_on_command(typed_command(), self.options, self.folder)
            where = ' on each machine' if command.startswith('torchrun --nnodes') else ''
            raise RunStopped(f'stopped, {saved}; this command{where} continues the run:', command)

    def _train_epoch(self, epoch: int, progress: Progress) -> None:
        """Train until the epoch ends or the trainer stops, and report and save in between."""
        options, length = self.options, self.trainer.updates_per_epoch
        for update in self.trainer.updates():
            progress.advance()
            self.writer.poll()
            number = update - epoch * length  # in this epoch
            if number % options.log_interval == 0 or number == length:
                self._report(epoch, update, progress)
            if options.recovery_interval and number % options.recovery_interval == 0 and number < length:
                self._save_within(epoch)
                progress.pause()

    def _report(self, epoch: int, update: int, progress: Progress) -> None:
        """Report the means since the last report. All processes must call this together."""
        means = self.trainer.means.report()
        learning_rate = self.trainer.optimizer.param_groups[0]['lr']
        progress.report(epoch, update, means['loss'], learning_rate)
        if means.get('unreadable'):
            self._say_unreadable(epoch)
        if self.records is not None:
            self.records.add_step(epoch, update, dict(
                means,
                lr=learning_rate,
                images_per_second=progress.images_per_second,
                memory_gb=peak_memory(self.trainer.device) / 1e9,
            ))

    def _say_unreadable(self, epoch: int) -> None:
        share = self.trainer.check_readable()
        if self.saver is not None:
            _logger.warning(
                f'epoch {epoch + 1}: {share:.2%} of the images so far cannot be read, others took their place')

    def _is_due(self, completed: int) -> bool:
        options = self.options
        marked = completed in (self.trainer.last_epoch, *options.save_epochs)
        return marked or completed % options.val_interval == 0 or self._is_probed(completed)

    def _is_probed(self, completed: int) -> bool:
        if self.probes is None:
            return False
        interval = self.options.mim_probe_interval
        return completed == self.trainer.last_epoch or bool(interval) and completed % interval == 0

    def _probe(self, epoch: int, method: nn.Module) -> Dict[str, Optional[float]]:
        """Run the probes if they are due after this epoch. Otherwise return None for each of their accuracies."""
        if self.probes is None:
            return {}
        if not self._is_probed(epoch + 1):
            return dict.fromkeys(self.probes.names)
        self.results['probes'] = self.probes.measure(method, self.trainer.autocast)
        if self.saver is not None:
            self._warn_if_worse(self.results['probes'])
        return self.results['probes']

    def _save_within(self, epoch: int) -> None:
        trainer = self.trainer
        state, as_folder = trainer.state_dict(), trainer.saves_folders
        if self.saver is None:
            self._write_own_part(state)
            return
        self.saver.save_within_epoch(
            epoch, trainer.update - epoch * trainer.updates_per_epoch, state, self.results, as_folder)

    def _write_own_part(self, state: Dict[str, Any]) -> None:
        """Write the part of this process of a checkpoint that is a folder. The first process does all else."""
        tensors = sharded_tensors(state)
        if tensors:
            self.writer.start(self.folder, tensors)

    def evaluate(self, epoch: int) -> None:
        """Measure the held-out error, and write records, checkpoint, encoder and picture.

        Args:
            epoch: Number of the completed epoch, from 0.
        """
        trainer = self.trainer
        method = trainer.trained_method
        means = trainer.means.of_epoch()
        measured = self.held_out.measure(method, trainer.autocast)
        views = self.held_out.views(method, trainer.autocast, _PICTURE_ROWS)
        probed = self._probe(epoch, method)
        state, as_folder = trainer.state_dict(), trainer.saves_folders
        encoder = None if as_folder else whole(method.encoder.state_dict(), keep=self.saver is not None)
        if self.saver is None:
            self._write_own_part(state)
            return
        name, error = next(iter(measured.items()))
        by_probe = self.options.mim_probe_best
        if by_probe:
            metric = probed[self.probes.names[0]]
        else:
            metric = error if method.losses_compare else None
        best_epoch, best = self.saver.best_with(epoch, metric)
        self.results.update(
            metric=name, last_epoch=epoch, last=measured, best_epoch=best_epoch, best=best,
            best_by=self.probes.names[0] if by_probe else name)
        self.records.report.name_last(LAST + (FOLDER if as_folder else FILE))
        self.records.add_epoch(
            epoch,
            trainer.update,
            train=means,
            held_out={**measured, **self.results['baselines'], **probed},
            learning_rate=trainer.optimizer.param_groups[0]['lr'],
        )
        self.records.add_picture(
            epoch,
            trainer.update,
            views,
            caption=f'epoch {epoch + 1}, held-out images ({name} over all of them: {error:.3f})',
        )
        write_encoder = None
        if best_epoch in (epoch, None):
            write_encoder = partial(
                save_encoder, self.folder, model=method.encoder, data_config=self.records.data_config,
                tag=self.options.mim)
            if not as_folder:
                write_encoder(encoder)
        # Saved last, because the checkpoint marks the epoch as done: a run that is killed earlier repeats the epoch.
        self.saver.save_epoch(epoch, metric, state, self.results, as_folder, write_encoder)


def run(args: argparse.Namespace) -> None:
    """Pre-train a model.

    On failure, ends the program with one line and an exit code: 2 for a user's mistake, before anything is written;
    1 for a loss that is not finite, unreadable data or a full disk; 75 after SIGTERM or Ctrl-C, once the state is saved
    and the run can be continued.

    Args:
        args: The arguments that the user gave. Arguments that the user did not give are absent or None.
    """
    with exit_codes(), FolderLock() as lock, LogFile() as log:
        _run(args, log, lock)


def _run(args: argparse.Namespace, log: LogFile, lock: FolderLock) -> None:
    import_mim_module(args)
    options, from_recipe = resolve_options(args)
    import_device_modules(options.device_modules)
    check_trackers(options)
    mode = image_mode(options.in_chans, options.input_img_mode)
    if options.plan is not None:
        print(plan(options, num_images(open_data(options, mode).train)))
        return
    process = init_process(options)
    folder, checkpoint = _begin(options, process, lock)
    data = open_data(options, mode)
    images = fingerprint(data.train, data.held_out)
    if checkpoint is not None:
        take_measured(options, checkpoint)
        check_same_data(checkpoint, images, tell=is_primary(process))
    measured = measure_statistics(options, data.train, mode)
    if measured:
        data = data._replace(description=f'{data.description}; {measured}')
    random_seed(options.seed)
    with built_in(options.fsdp_build_dir):
        method, model_args = create_method(options)
    data_config = resolve_image_config(options, method, mode)
    method.set_image_statistics(data_config['mean'], data_config['std'])
    device = torch.device(process.device)
    train_loader = create_train_loader(data.train, options, data_config, device, process.rank, process.world_size)
    held_out = hold_out(data.held_out, options, data_config, process)

    with StopSignal() as stop, ending_workers(train_loader):
        if not options.fsdp:  # with --fsdp, `fully_shard` moves each block to the device
            method = method.to(device)
        trainer = Trainer(options, method, train_loader, process, stop, checkpoint, images)
        # after the trainer, which may shard the method
        probes = Probes(options, trainer.trained_method, data_config, process) if options.mim_probe_dir else None
        if not is_primary(process):
            log.open(None)
            RunLoop(trainer, held_out, folder, None, checkpoint, probes).train()
            return
        bar = wants_bar(process.distributed)
        with open_trackers(options, folder, trainer.update) as trackers, lines_above_bar(bar):
            save_options(folder, options)
            log.open(folder)
            log_start(options, from_recipe, data.description, data_config, trainer, held_out, folder, probes)
            report = Report(folder, options, model_args, collect_environment(device, process.world_size))
            records = Records(
                folder, data_config, trainer.update, trainer.updates_per_epoch, trackers, report, options.warmup_epochs)
            results = RunLoop(trainer, held_out, folder, records, checkpoint, probes).train(bar)
            log_end(options, folder, trainer, results, model_args, file_names(data.held_out))


def _begin(
        options: RunOptions,
        process: argparse.Namespace,
        lock: FolderLock,
) -> Tuple[Path, Optional[Checkpoint]]:
    """Lock the run folder, and load the checkpoint to resume from. The first process chooses both for all processes."""
    folder = checkpoint = error = None
    if is_primary(process):
        try:
            folder = claim_run_folder(options, lock)
            checkpoint = find_checkpoint(options, folder)
        except (OSError, UserError) as e:
            error = e
    if process.distributed:
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
        OSError: This process cannot read the checkpoint.
    """
    try:
        return load_checkpoint(path, verify=False)._replace(in_place=in_place)
    except UserError as e:
        raise OSError(f'{e} The first process has read it.') from e
