"""What a run says before it begins and after it has ended."""
import argparse
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

from ..encoder_files import ENCODER, HUB_FOLDER, fine_tuning_command, hub_lines, loading_lines
from ..held_out import HeldOutImages
from ..probes.probes import Probes
from ..run_folder import BEST, LAST, PICTURES, save_results
from ..trainer import Trainer
from .curves import CURVES
from .environment import describe_environment
from .log_file import LOG
from .report import REPORT

_logger = logging.getLogger(__name__)


def describe(
        options: argparse.Namespace,
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
    others = f' and {trainer.place.world_size - 1} more' if trainer.place.distributed else ''
    _logger.info(
        f'{options.mim} with {options.model}: {parameters / 1e6:.1f}M parameters, images of {channels} x {height} x '
        f'{width}, on {trainer.device}{others}')
    environment = describe_environment(trainer.device, trainer.place.world_size)
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


def conclude(
        options: argparse.Namespace,
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


_NAMES = dict(
    mean_of_visible='mean of the visible pixels',
    diffusion_fill='diffusion of the visible pixels',
    loss_of_patch_mean='predicting the mean of each patch',
    loss_of_zeros='predicting zeros',
    loss_of_constant='predicting the mean of the targets',
)


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
