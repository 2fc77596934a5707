"""The folder of a pre-training run: where it is, what lies in it."""
import argparse
import os
from datetime import datetime
from pathlib import Path
from typing import Any, Dict

import yaml

from timm.models import safe_model_name
from .errors import UserError, one_line
from .files import is_full, to_json, write_complete

LAST = 'last.pth.tar'
BEST = 'model_best.pth.tar'
PICTURES = 'reconstructions'


def find_run_folder(options: argparse.Namespace) -> Path:
    """Decide on the folder of a run, without writing anything.

    Args:
        options: Options of the run.

    Raises:
        UserError: The folder holds another run or cannot be written, or there is no such checkpoint.
    """
    name = options.experiment or '-'.join([
        datetime.now().strftime('%Y%m%d-%H%M%S'),
        safe_model_name(options.model),
        options.mim,
    ])
    folder = Path(options.output or './output/pretrain') / name
    if options.resume == 'auto':
        if not options.experiment:
            raise UserError('--resume auto looks into the run folder: name it with --experiment.')
    elif options.resume:
        if not Path(options.resume).is_file():
            raise UserError(f"--resume: there is no checkpoint '{options.resume}'.")
        if not (options.output or options.experiment):
            folder = Path(options.resume).parent
    elif (folder / 'args.yaml').exists() or (folder / LAST).exists():
        raise UserError(
            f"'{folder}' holds a run already: go on with --resume auto, or choose another --output or --experiment.")
    _check_writable(folder)
    return folder


def _check_writable(folder: Path) -> None:
    parent = folder.absolute()
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output: '{folder}' cannot be written, '{parent}' is not a folder that you may write to.")


def create_run_folder(folder: Path, options: argparse.Namespace) -> None:
    """Create the folder, with the options of the run as `args.yaml`.

    Args:
        folder: Folder of the run.
        options: Options of the run.

    Raises:
        OSError: The disk is full.
        UserError: The folder cannot be written.
    """
    path = folder / 'args.yaml'
    try:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(plain_options(options), sort_keys=False))
    except OSError as e:
        if is_full(e):
            raise OSError(f"'{path}' cannot be written: {one_line(e)}") from e
        raise UserError(f"--output: '{folder}' cannot be written: {e.strerror}.") from None


def plain_options(options: argparse.Namespace) -> Dict[str, Any]:
    """Return options as lists, numbers and strings, which YAML and checkpoints hold, tuples as lists."""
    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value

    return {name: plain(value) for name, value in vars(options).items()}


def save_results(path: Path, results: Dict[str, Any]) -> None:
    """Write the results of a run as JSON."""
    write_complete(path, lambda partial: partial.write_text(to_json(results, indent=2) + '\n'))
