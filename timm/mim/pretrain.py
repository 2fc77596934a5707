"""Pre-training by masked image modeling, as a training script runs it.

A script needs two calls: `add_arguments(parser)` for the flags, and `run(args)` with the arguments that the user gave.
All the rest is timm's: data, optimizers, schedules, checkpoints, and the task in `timm.task`.
"""
import argparse
import importlib
import logging
import math
import os
import sys
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn as nn

from timm.data import resolve_data_config
from timm.data.loader import adapt_to_chs
from timm.layers import set_fast_norm
from timm.models import create_model, resolve_model_input_args
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import MaskedImageModelingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, NativeScaler, dispatch_clip_grad, init_distributed_device, is_primary, \
    load_checkpoint_metadata, random_seed, reduce_tensor, trim_summary, update_summary
from .factory import create_mim, list_mim_models
from .held_out import HeldOutImages
from .noise import keyed_noise
from .pretrain_data import create_train_loader, file_names, image_mode, load_held_out, open_data, sample_seed
from .pretrain_options import UserError, add_mim_arguments, flag_name, resolve_learning_rate, resolve_options
from .progress import Progress, lines_above_bar, wants_bar
from .run_folder import BEST, ENCODER, LAST, PICTURES, create_run_folder, find_run_folder, loading_lines, \
    plain_options, save_encoder, save_results
from .visualize import reconstruction_panel

_logger = logging.getLogger(__name__)

# What a checkpoint must agree on with the run that goes on from it.
_SAME_ON_RESUME = ('mim', 'model', 'model_kwargs', 'img_size', 'in_chans', 'mask_ratio', 'mask_unit', 'mim_kwargs')
_PICTURE_ROWS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of masked image modeling to a training script's parser."""
    add_mim_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Pre-train as the arguments say.

    A user's mistake ends the program with one line and exit code 2, before anything is written; a loss that is no
    longer finite ends it with one line and exit code 1.

    Args:
        args: The arguments that the user gave; what was not given is absent or None.
    """
    try:
        _run(args)
    except UserError as e:
        _exit(e, 2)
    except FloatingPointError as e:
        _exit(e, 1)
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _exit(error: Exception, code: int) -> None:
    if int(os.environ.get('RANK', 0)) == 0:
        print(f'{os.path.basename(sys.argv[0])}: error: {error}', file=sys.stderr)
    raise SystemExit(code)


def _run(args: argparse.Namespace) -> None:
    options, from_recipe = resolve_options(args)
    _import_device_modules(options)
    folder, checkpoint = find_run_folder(options)
    if checkpoint is not None:
        _check_same_run(checkpoint, options)
    mode = image_mode(options.in_chans, options.input_img_mode)
    data = open_data(options, mode)
    random_seed(options.seed)
    method, model_args = create_method(options)

    # The device arguments of the script stay as they were given, args.yaml and checkpoints hold those.
    place = argparse.Namespace(device=options.device)
    device = init_distributed_device(place)
    primary = is_primary(place)
    if device.type == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True

    data_config = _data_config(options, method, mode)
    train_loader = create_train_loader(data.train, options, data_config, device, place.rank, place.world_size)
    images, numbers = load_held_out(data.held_out, options, data_config, device, place.rank, place.world_size)
    num_held_out = int(_sum_over_processes(len(images), device, place))
    if num_held_out == 0:
        raise UserError('--val-split: there is no image to hold out.')
    held_out = HeldOutImages(
        images, numbers, num_held_out, device, options.validation_batch_size or options.batch_size)

    trainer = Trainer(options, method.to(device), train_loader, held_out, place, folder, checkpoint)
    if primary:
        create_run_folder(folder, options)
        _describe(options, from_recipe, data.description, data_config, trainer, num_held_out, held_out.num_masks)
    bar = wants_bar(place.distributed)
    with lines_above_bar(bar):
        trainer.train(data_config, bar)
    if primary:
        trainer.conclude(model_args, file_names(data.held_out))


def _import_device_modules(options: argparse.Namespace) -> None:
    for module in options.device_modules or []:
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise UserError(f'--device-modules {module}: {_one_line(e)}') from e


def _check_same_run(checkpoint: Path, options: argparse.Namespace) -> None:
    try:
        saved = load_checkpoint_metadata(checkpoint).get('args')
    except Exception as e:  # a file that is no checkpoint, or half of one, fails in many ways
        raise UserError(f"--resume: '{checkpoint}' is not a complete checkpoint of a training run.") from e
    present = plain_options(options)
    for name in _SAME_ON_RESUME:
        if saved is not None and getattr(saved, name, None) != present[name]:
            raise UserError(
                f"--resume: '{checkpoint}' was trained with {name} {getattr(saved, name, None)}, not {present[name]}.")


def create_method(options: argparse.Namespace) -> Tuple[nn.Module, Dict[str, Any]]:
    """Build the model and the method around it.

    Args:
        options: Options of the run.

    Returns:
        The method, and the arguments with which `timm.create_model` builds such a model again.

    Raises:
        UserError: There is no such model, the method cannot serve it, or an option does not suit it.
    """
    try:
        model_args = resolve_model_input_args(
            options.model,
            dict(img_size=options.img_size),
            in_chans=options.in_chans if options.in_chans != 3 else None,
            **options.model_kwargs,
        )
    except RuntimeError:
        raise _unknown_model(options) from None
    except (OSError, ValueError) as e:
        raise UserError(f'--model {options.model}: {e}') from None

    for name in ('initial_checkpoint', 'pretrained_path'):
        path = getattr(options, name)
        if path and not os.path.isfile(path):
            raise UserError(f"{flag_name(name)}: there is no file '{path}'.")
    pretrained = dict(pretrained=options.pretrained, checkpoint_path=options.initial_checkpoint)
    if options.pretrained_path:
        pretrained.update(pretrained=True, pretrained_cfg_overlay=dict(file=options.pretrained_path, num_classes=-1))
    build_args = {**model_args, 'num_classes': 0, **pretrained}
    if options.drop_path is not None:
        build_args['drop_path_rate'] = options.drop_path
    if options.fast_norm:
        set_fast_norm()
    try:
        backbone = create_model(**build_args)
    except (AssertionError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as e:
        raise UserError(f'--model {options.model} cannot be built: {_one_line(e)}') from e

    mim_options = dict(options.mim_kwargs)
    for name in ('mask_ratio', 'mask_unit'):
        if getattr(options, name) is not None:
            mim_options.setdefault(name, getattr(options, name))
    try:
        method = create_mim(options.mim, backbone, img_size=options.img_size, **mim_options)
    except (AssertionError, RuntimeError, ValueError) as e:
        raise UserError(_one_line(e)) from e
    if options.grad_checkpointing:
        method.set_grad_checkpointing(True)
    rebuild_args = {k: v for k, v in model_args.items() if k not in ('model_name', 'pretrained_cfg')}
    return method, rebuild_args


def _unknown_model(options: argparse.Namespace) -> UserError:
    models = list_mim_models(options.mim)
    near = get_close_matches(options.model, models, n=3)
    hint = f'did you mean {", ".join(near)}?' if near else f"timm.mim.list_mim_models('{options.mim}') lists them."
    return UserError(f"--model: there is no model '{options.model}'; {hint}")


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


def _data_config(options: argparse.Namespace, method: nn.Module, mode: str) -> Dict[str, Any]:
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


def _sum_over_processes(value: float, device: torch.device, place: argparse.Namespace) -> float:
    if not place.distributed:
        return value
    return reduce_tensor(torch.tensor(float(value), device=device), 1).item()


def _describe(
        options: argparse.Namespace,
        from_recipe: List[str],
        data_description: str,
        data_config: Dict[str, Any],
        trainer: 'Trainer',
        num_held_out: int,
        num_masks: int,
) -> None:
    """Say what is about to happen, in a few lines."""
    channels, height, width = data_config['input_size']
    parameters = sum(p.numel() for p in trainer.task.get_method().parameters() if p.requires_grad)
    recipe = ', '.join(f'{name} {_short(getattr(options, name))}' for name in from_recipe)
    _logger.info(f'{options.mim} with {options.model}: {parameters / 1e6:.1f}M parameters, images of {channels} x '
                 f'{height} x {width}, on {trainer.device}' + (f' and {trainer.place.world_size - 1} more'
                                                             if trainer.place.distributed else ''))
    _logger.info(f'data: {data_description}')
    _logger.info(f'held out: {num_held_out} images with {num_masks} mask(s) each')
    _logger.info(f"from the recipe of {options.mim}: {recipe or 'nothing'}")
    _logger.info(
        f'{trainer.num_epochs} epochs of {trainer.updates_per_epoch} steps with {trainer.images_per_update} images, '
        f'learning rate {trainer.learning_rate:.3g} ({options.sched}, {options.warmup_epochs} epochs of warm-up)')
    _logger.info(f'run folder: {trainer.folder}')


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ' '.join(_short(v) for v in value)
    return f'{value:.4g}' if isinstance(value, float) else str(value)


class Trainer:
    """Trains a method, and keeps the run folder.

    Args:
        options: Options of the run.
        method: Masked image modeling method, on its device.
        train_loader: Loader of normalised training images.
        held_out: Held-out images.
        place: Device and rank of this process, as `init_distributed_device` sets them.
        folder: Folder of the run.
        checkpoint: Checkpoint to go on from.
    """

    def __init__(
            self,
            options: argparse.Namespace,
            method: nn.Module,
            train_loader,
            held_out: HeldOutImages,
            place: argparse.Namespace,
            folder: Path,
            checkpoint: Optional[Path] = None,
    ):
        self.options = options
        self.place = place
        self.folder = folder
        self.held_out = held_out
        self.train_loader = train_loader
        self.device = torch.device(place.device)
        self.noise_size = method.noise_shape(1)[1]

        self.updates_per_epoch = len(train_loader) // options.grad_accum_steps
        if self.updates_per_epoch == 0:
            raise UserError(
                f'--grad-accum-steps {options.grad_accum_steps}: the dataset has {len(train_loader)} batches an epoch.')
        self.images_per_update = options.batch_size * place.world_size * options.grad_accum_steps
        self.learning_rate = resolve_learning_rate(options, self.images_per_update)

        if options.channels_last:
            method = method.to(memory_format=torch.channels_last)
        self.autocast, self.scaler = self._mixed_precision()
        self.task = MaskedImageModelingTask(method, device=self.device, verbose=is_primary(place))
        self.optimizer = self._create_optimizer(method)
        self.start_epoch = self._resume(checkpoint)
        self._compile()
        if place.distributed:
            self.task.prepare_distributed(
                device_ids=None if self.device.type == 'cpu' else [self.device],
                broadcast_buffers=not options.no_ddp_bb,
            )
        self.scheduler, self.num_epochs = self._create_scheduler()
        self.saver = self._create_saver(checkpoint) if is_primary(place) else None
        self.results: Dict[str, Any] = {}

    def _mixed_precision(self) -> Tuple[Callable, Optional[NativeScaler]]:
        if not self.options.amp:
            return nullcontext, None
        dtype = getattr(torch, self.options.amp_dtype)
        # bfloat16 has the range of float32 and needs no scaler
        scaler = NativeScaler(device=self.device.type) if dtype == torch.float16 else None
        return partial(torch.autocast, device_type=self.device.type, dtype=dtype), scaler

    def _create_optimizer(self, method: nn.Module) -> torch.optim.Optimizer:
        cfg = argparse.Namespace(**{**vars(self.options), 'lr': self.learning_rate})
        try:
            return create_optimizer_v2(method, **optimizer_kwargs(cfg), **self.options.opt_kwargs)
        except (AssertionError, IndexError, TypeError, ValueError) as e:
            raise UserError(f'--opt {self.options.opt}: {_one_line(e)}') from e

    def _resume(self, checkpoint: Optional[Path]) -> int:
        """Load a checkpoint, set up the moving average, and return the epoch to begin with."""
        options = self.options
        epoch = None
        if checkpoint is not None:
            with_optimizer = not options.no_resume_opt
            try:
                epoch = resume_task_checkpoint(
                    self.task,
                    str(checkpoint),
                    optimizer=self.optimizer if with_optimizer else None,
                    loss_scaler=self.scaler if with_optimizer else None,
                    log_info=is_primary(self.place),
                )
            except (KeyError, RuntimeError, ValueError) as e:
                raise UserError(f"--resume: '{checkpoint}' does not fit this run: {_one_line(e)[:300]}") from e
        if options.model_ema:
            self.task.setup_ema(decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)
            if checkpoint is not None:
                load_task_ema_checkpoint(self.task, str(checkpoint))
        return options.start_epoch if options.start_epoch is not None else epoch or 0

    def _compile(self) -> None:
        if not self.options.torchcompile:
            if self.options.torchcompile_mode:
                raise UserError('--torchcompile-mode is for --torchcompile, which is not given.')
            return
        try:
            self.task.compile(backend=self.options.torchcompile, mode=self.options.torchcompile_mode)
        except RuntimeError as e:
            raise UserError(f'--torchcompile {self.options.torchcompile}: {_one_line(e)}') from e

    def _create_scheduler(self):
        try:
            scheduler, num_epochs = create_scheduler_v2(
                self.optimizer,
                **scheduler_kwargs(self.options, decreasing_metric=True),
                updates_per_epoch=self.updates_per_epoch,
            )
        except (AssertionError, ValueError) as e:
            raise UserError(f'--sched {self.options.sched}: {_one_line(e)}') from e
        if scheduler is not None and self.start_epoch > 0:
            scheduler.step_update(self.start_epoch * self.updates_per_epoch)
        return scheduler, num_epochs

    def _create_saver(self, checkpoint: Optional[Path]) -> CheckpointSaver:
        logging.getLogger('timm.utils.checkpoint_saver').setLevel(logging.WARNING)  # it lists every file each time
        saver = CheckpointSaver(
            model=self.task.get_method(),
            optimizer=self.optimizer,
            args=argparse.Namespace(**plain_options(self.options)),
            amp_scaler=self.scaler,
            checkpoint_dir=str(self.folder),
            recovery_dir=str(self.folder),
            decreasing=True,
            max_history=self.options.checkpoint_hist,
            task=self.task,
        )
        if checkpoint is not None and checkpoint.parent.absolute() == self.folder.absolute():
            saver.load_state_dict_from_checkpoint(str(checkpoint))
        return saver

    @property
    def trained_method(self) -> nn.Module:
        """The method that counts: its moving average where there is one."""
        return self.task.get_method(ema=self.task.has_ema())

    def train(self, data_config: Dict[str, Any], bar: bool = False) -> None:
        """Train from the first epoch to the last, and keep the run folder.

        Args:
            data_config: Mean and standard deviation that the images were normalised with.
            bar: Show a progress bar.
        """
        primary = is_primary(self.place)
        last_epoch = min(self.options.stop_epoch or self.num_epochs, self.num_epochs)
        if self.start_epoch >= last_epoch:
            return
        if primary:
            trim_summary(str(self.folder / 'summary.csv'), self.start_epoch)
        self.results = dict(baselines=self.held_out.baselines(self.trained_method, self.autocast))
        progress = Progress(
            self.start_epoch * self.updates_per_epoch,
            last_epoch * self.updates_per_epoch,
            self.images_per_update,
            bar=bar,
            quiet=not primary,
        )
        for epoch in range(self.start_epoch, last_epoch):
            loss = self.train_epoch(epoch, progress)
            completed = epoch + 1
            if completed % self.options.val_interval == 0 or completed in (last_epoch, *self.options.save_epochs):
                self.evaluate(epoch, loss, data_config)
                progress.pause()
        progress.close()

    def train_epoch(self, epoch: int, progress: Progress) -> float:
        """Train for an epoch, and return its mean loss over all processes."""
        sampler = self.train_loader.sampler
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
        elif hasattr(self.train_loader.dataset, 'set_epoch'):
            self.train_loader.dataset.set_epoch(epoch)

        accumulation = self.options.grad_accum_steps
        done = epoch * self.updates_per_epoch
        losses = torch.zeros((), device=self.device)  # sum since the last report, fetched only there
        total, reported = 0.0, 0
        self.task.train()
        for step, (images, _) in enumerate(islice(self.train_loader, self.updates_per_epoch * accumulation)):
            update, part = divmod(step, accumulation)
            losses += self.train_step(images, done + update, part) / accumulation
            if part + 1 < accumulation:
                continue
            progress.advance()
            if (update + 1) % self.options.log_interval == 0 or update + 1 == self.updates_per_epoch:
                mean = self._fetch_loss(losses, update + 1 - reported, done + update)
                total += mean * (update + 1 - reported)
                reported = update + 1
                losses.zero_()
                progress.report(epoch, done + update + 1, mean, self.optimizer.param_groups[0]['lr'])
        return total / max(1, reported)

    def train_step(self, images: torch.Tensor, update: int, part: int) -> torch.Tensor:
        """Train on one batch, and return its loss without waiting for it.

        Args:
            images: Normalised images of this process.
            update: Number of the update in the whole run.
            part: Number of the batch within the update.
        """
        options = self.options
        last = part + 1 == options.grad_accum_steps
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # Masks depend on the place of an image in the global batch, whatever process it is on. Dropout need not: its
        # seed only has to be the same when a run is resumed.
        first = (part * self.place.world_size + self.place.rank) * options.batch_size
        positions = torch.arange(first, first + len(images), device=self.device)
        noise = keyed_noise(options.seed, update, positions, self.noise_size)
        torch.manual_seed(sample_seed(options.seed, update, first))

        with nullcontext() if last else self.task.no_sync():
            with self.autocast():
                loss = self.task(images, noise=noise)['loss']
            self._backward(loss / options.grad_accum_steps, last)
        if last:
            self.optimizer.zero_grad()
            self.task.update_ema(step=update + 1)
            if self.scheduler is not None:
                self.scheduler.step_update(update + 1)
            if options.synchronize_step and self.device.type == 'cuda':
                torch.cuda.synchronize()
        return loss.detach()

    def _backward(self, loss: torch.Tensor, need_update: bool) -> None:
        clip = self.options.clip_grad or None
        parameters = self.task.get_clip_parameters() if clip else None
        if self.scaler is not None:
            self.scaler(
                loss,
                self.optimizer,
                clip_grad=clip,
                clip_mode=self.options.clip_mode,
                parameters=parameters,
                need_update=need_update,
            )
            return
        loss.backward()
        if need_update:
            if clip:
                dispatch_clip_grad(parameters, clip, mode=self.options.clip_mode)
            self.optimizer.step()

    def _fetch_loss(self, losses: torch.Tensor, count: int, update: int) -> float:
        """Return the mean of the last losses over all processes."""
        mean = losses / count
        if self.place.distributed:
            mean = reduce_tensor(mean, self.place.world_size)
        mean = mean.item()
        if not math.isfinite(mean):
            raise FloatingPointError(
                f'the loss is {mean} at step {update}, learning rate {self.optimizer.param_groups[0]["lr"]:.3g}: lower '
                '--lr, or use --amp-dtype bfloat16 if it is float16. Nothing of this epoch is saved.')
        return mean

    def evaluate(self, epoch: int, loss: float, data_config: Dict[str, Any]) -> None:
        """Measure the held-out error, and write summary, checkpoint, encoder and picture.

        Args:
            epoch: Number of the epoch.
            loss: Mean training loss of the epoch.
            data_config: Mean and standard deviation that the images were normalised with.
        """
        method = self.trained_method
        masked_l1 = self.held_out.masked_l1(method, self.autocast)
        if self.saver is None:
            return
        _logger.info(f'epoch {epoch}: training loss {loss:.4f}, held-out masked L1 {masked_l1:.4f}')
        update_summary(
            epoch,
            dict(loss=loss),
            dict(masked_l1=masked_l1, **self.results['baselines']),
            filename=str(self.folder / 'summary.csv'),
            lr=self.optimizer.param_groups[0]['lr'],
        )
        best_l1, best_epoch = self.saver.save_checkpoint(epoch, metric=masked_l1)
        if epoch + 1 in self.options.save_epochs:
            self.saver.save_milestone(epoch + 1)
        if best_epoch == epoch:
            save_encoder(self.folder / ENCODER, method.backbone)
        self.results.update(
            last_epoch=epoch, last_masked_l1=masked_l1, best_epoch=best_epoch, best_masked_l1=best_l1)
        reconstruction_panel(
            self.folder / PICTURES / f'epoch-{epoch:04d}.png',
            **self.held_out.reconstructions(method, self.autocast, _PICTURE_ROWS),
            mean=data_config['mean'],
            std=data_config['std'],
            caption=f'epoch {epoch}, held-out images (masked L1 over all of them: {masked_l1:.3f})',
        )

    def conclude(self, model_args: Dict[str, Any], held_out_names: List[str]) -> None:
        """Write the results, and say what came out, where it lies and how to load it.

        Args:
            model_args: Arguments that the model was built with.
            held_out_names: Names of the held-out images.
        """
        if 'best_epoch' not in self.results:
            _logger.info(f'{self.folder}: all {self.num_epochs} epochs were done already.')
            return
        results = self.results
        lines = loading_lines(self.folder / ENCODER, self.options.model, model_args)
        save_results(
            self.folder / 'summary.json', {**results, 'held_out_images': held_out_names, 'load': list(lines)})
        rows = [
            (f'this run, best (epoch {results["best_epoch"]})', results['best_masked_l1']),
            (f'this run, last (epoch {results["last_epoch"]})', results['last_masked_l1']),
            ('mean of the visible pixels', results['baselines']['mean_of_visible']),
            ('diffusion of the visible pixels', results['baselines']['diffusion_fill']),
        ]
        _logger.info('\nheld-out masked L1, normalised pixels, same masks for all (lower is better)')
        for name, value in rows:
            _logger.info(f'  {name:<34}{value:.4f}')
        _logger.info(f'\n{self.folder}')
        for name, content in (
                (ENCODER, f'encoder of epoch {results["best_epoch"]}, the best by held-out masked L1'),
                (f'{LAST}, {BEST}', 'checkpoints, last and best'),
                (f'{PICTURES}/', 'held-out images: original, masked, reconstructed'),
                ('summary.csv, summary.json', 'numbers of every epoch, and of the run'),
                ('args.yaml', 'options of the run'),
        ):
            _logger.info(f'  {name:<34}{content}')
        _logger.info('\nload the encoder:\n  ' + '\n  '.join(lines))
