"""Draw the curves of a run, write its report as one static HTML page, and collect commands and environment."""

import base64
import html
import io
import json
import logging
import math
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
import yaml
from PIL import Image

import timm
from ...files import write_complete
from ...visualize import CAPTION_HEIGHT
from ..encoder_files import fine_tuning_command, hub_lines, loading_lines
from ..flags.run_options import RunOptions
from ..run_folder import ENCODER, FILE, LAST, PICTURES, plain_options

_logger = logging.getLogger(__name__)
CURVES = 'curves.png'
_NOTE = "curves.png needs matplotlib: pip install matplotlib, or the extra 'plots'."

_OWN_FILE = 'upstream.lock.json'  # at the top of this package's repository only

REPORT = 'report.html'
# measures that show a collapse of the targets
_VARIETY = tuple(f'eval_{name}' for name in ('target_std', 'target_rank', 'assignment_entropy', 'cluster_entropy'))

_MAX_PICTURES = 8  # evenly spread over the run
_MAX_ROWS = 40
_MAX_WIDTH = 1200  # of a picture, in pixels

_TITLES = dict(
    masked_l1='masked L1',
    mean_of_visible='mean of the visible pixels',
    diffusion_fill='diffusion of the visible pixels',
    loss_of_patch_mean='predicting the mean of each patch',
    loss_of_zeros='predicting zeros',
    loss_of_constant='predicting the mean of the targets',
    target_std='standard deviation of the targets',
    target_rank='rank of the targets',
    knn_top1='nearest neighbours, top-1 %',
    linear_top1='linear probe, top-1 %',
    attentive_top1='attentive probe, top-1 %',
)

_PAGE = Template('''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; margin-bottom: 0; }
h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd; }
img { max-width: 100%; }
figure { margin: 1em 0; }
figcaption, .note { color: #666; }
pre { background: #f5f5f5; padding: .8em; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .15em .8em; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee; }
th { white-space: normal; vertical-align: bottom; min-width: 4em; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="note">$subtitle</p>
<h2>Training and held-out error</h2>
$curves
<h2>Held-out results</h2>
<p class="note">Epochs count from 1; file names such as checkpoint-0.pth.tar count from 0, as timm's do.</p>
<div class="scroll">$evaluations</div>
<h2>Held-out images during training</h2>
$pictures
<h2>Commands</h2>
$commands
<h2>Software and machine</h2>
$environment
<h2>All options</h2>
<pre>$configuration</pre>
</body>
</html>
''')


def title_of(metric: str) -> str:
    """Return the name of a metric for people, given its name in `metrics.jsonl`, with or without `eval_`."""
    name = metric.removeprefix('eval_')
    return _TITLES.get(name, name.replace('_', ' '))


def can_draw_curves() -> bool:
    """Return whether matplotlib is installed, and log a note if it is not."""
    if find_spec('matplotlib') is not None:
        return True
    _logger.info(_NOTE)
    return False


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """Read the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def draw_curves(path: Path, lines: List[Dict[str, Any]]) -> None:
    """Write the curves of a run to a picture, atomically.

    Args:
        path: Picture to write.
        lines: Lines of `metrics.jsonl`.
    """
    figure = create_figure(lines)
    write_complete(path, lambda partial: figure.savefig(partial, format='png', dpi=110))


def create_figure(lines: List[Dict[str, Any]]):
    """Draw the loss, the learning rate, the held-out errors and the accuracies of probes.

    Args:
        lines: Lines of `metrics.jsonl`.

    Returns:
        matplotlib figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # pyplot would keep every figure and look for a display

    steps = [line for line in lines if 'loss' in line]
    evaluations = [line for line in lines if any(name.startswith('eval_') for name in line)]
    groups = _group(evaluations)
    rows = -(-(1 + len(groups)) // 2)
    figure = Figure(figsize=(12, 4 * rows), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    _draw_loss(axes[0], steps)
    for axis, (title, names) in zip(axes[1:], groups):
        _draw_measures(axis, title, names, evaluations)
    for axis in axes[1 + len(groups):]:
        axis.remove()
    return figure


def _group(evaluations: List[Dict[str, Any]]) -> List[Tuple[str, List[str]]]:
    """Group metrics into panels: errors, variety of the targets, accuracies of probes."""
    names = list(dict.fromkeys(name for line in evaluations for name in line if name.startswith('eval_')))
    variety = [name for name in names if name in _VARIETY]
    probes = [name for name in names if '_top1' in name]
    errors = [name for name in names if name not in variety + probes]
    groups = [('held-out error', errors), ('variety of the targets', variety), ('accuracy of probes, %', probes)]
    return [(title, names) for title, names in groups if names]


def _draw_loss(axis, steps: List[Dict[str, Any]]) -> None:
    updates = [line['update'] for line in steps]
    losses = [math.nan if line['loss'] is None else line['loss'] for line in steps]
    axis.plot(updates, losses, color='C0', marker='.' if len(steps) == 1 else None, label='training loss')
    axis.set(title='training', xlabel='update', ylabel='loss')
    rate = axis.twinx()
    rate.plot(updates, [line.get('lr') for line in steps], color='C7', linewidth=1, linestyle=':')
    rate.set_ylabel('learning rate (dotted)', color='C7')
    rate.set_ylim(bottom=0)


def _draw_measures(axis, title: str, names: List[str], evaluations: List[Dict[str, Any]]) -> None:
    axis.set(title=title, xlabel='update')
    first = names[0]
    for number, name in enumerate(names):
        # rank and standard deviation differ by orders of magnitude
        place = axis.twinx() if name == 'eval_target_rank' and len(names) > 1 else axis
        points = [(line['update'], line[name]) for line in evaluations if line.get(name) is not None]
        if not points:
            continue
        baseline = title == 'held-out error' and name != first
        label = title_of(name)
        place.plot(
            *zip(*points),
            color=f'C{number}',
            linestyle='--' if baseline else '-',
            marker=None if baseline and len(points) > 1 else '.',
            label=label,
        )
        if title == 'variety of the targets':
            # values near 0 show a collapse; unequal room above keeps constant values off the frame and apart
            place.set_ylim(0, (1.2 + 0.3 * number) * max(value for _, value in points) or 1)
        if place is not axis:
            place.set_ylabel(label, color=f'C{number}')
    if title == 'variety of the targets':
        axis.set_ylabel(title_of(first), color='C0')
    else:
        axis.legend(fontsize='small')


def typed_command() -> str:
    """Return the command line of this program, quoted for a shell.

    If torchrun started the processes, the command begins with torchrun. For several machines it is to be typed on each
    of them, and names one of them as the place where they meet.
    """
    return shlex.join(_command_words())


def go_on_command(command: str, options: RunOptions, folder: Path) -> str:
    """Return the command that continues a run, or starts it again if nothing was saved.

    Args:
        command: The command that started the run.
        options: Options of the run.
        folder: Folder of the run.
    """
    added = []
    if options.resume != 'auto':  # if a flag is given twice, argparse takes the last one
        if options.resume and not (options.output or options.experiment):
            added += ['--output', str(folder.parent)]
        if not options.experiment:
            added += ['--experiment', folder.name]
        added += ['--resume', 'auto']
    return ' '.join([command, *map(shlex.quote, added)])


def _command_words() -> List[str]:
    arguments, typed = sys.argv[1:], sys.orig_argv
    # Only sys.orig_argv has Python's own flags and -m MODULE. It does not match if another program called this one.
    original = bool(arguments) and typed[-len(arguments):] == arguments
    words = list(typed) if original else [Path(sys.executable).name, *sys.argv]
    launcher = _launcher_words()
    own = 2 if words[1] == '-u' else 1  # torchrun starts `python -u`
    return [*launcher, *words[own:]] if launcher else words


def _launcher_words() -> List[str]:
    """Return torchrun with its arguments; nothing if it did not start this process, or machines have unequal numbers.
    """
    if 'TORCHELASTIC_RUN_ID' not in os.environ:
        return []
    per_machine, world_size = os.environ['LOCAL_WORLD_SIZE'], os.environ['WORLD_SIZE']
    machines = int(os.environ.get('GROUP_WORLD_SIZE', 1))
    if machines * int(per_machine) != int(world_size):
        return []
    meeting = [] if machines == 1 else [
        '--nnodes', str(machines), '--rdzv-backend', 'c10d', '--rdzv-endpoint', os.environ['MASTER_ADDR']]
    return ['torchrun', *meeting, '--nproc-per-node', per_machine]


def collect_environment(device: torch.device, world_size: int = 1) -> Dict[str, str]:
    """Return versions, system, device and command line of a run by name.

    Args:
        device: Device of the training.
        world_size: Number of processes.
    """
    commit = package_commit()
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    return {
        'timm': timm.__version__ + (f', commit {commit}' if commit else ''),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'system': platform.platform(),
        'device': f'{device.type} ({name})' + (f', {world_size} processes' if world_size > 1 else ''),
        'command': typed_command(),
    }


def package_commit() -> Optional[str]:
    """Return the commit of this package if it was installed from git or lies in its repository, otherwise None.

    A plus after the commit stands for uncommitted changes.
    """
    try:
        origin = json.loads(distribution('timm').read_text('direct_url.json') or '{}')
    except (PackageNotFoundError, ValueError):
        origin = {}
    commit = origin.get('vcs_info', {}).get('commit_id')
    if commit:
        return commit[:12]
    folder = Path(timm.__file__).parent
    root = _git(folder, 'rev-parse', '--show-toplevel')
    if not root or not (Path(root) / _OWN_FILE).is_file():
        return None
    changed = _git(folder, 'status', '--porcelain', '--untracked-files=no')
    commit = _git(folder, 'rev-parse', '--short=12', 'HEAD')
    return commit and commit + ('+' if changed else '')


def _git(folder: Path, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(
            ['git', '-C', str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Report:
    """Writes `report.html`, a page that needs no other files and no network.

    Args:
        folder: Folder of the run.
        options: Options of the run.
        model_args: Arguments with which the model was created.
        environment: Result of `collect_environment`.
    """

    def __init__(
            self,
            folder: Path,
            options: RunOptions,
            model_args: Dict[str, Any],
            environment: Dict[str, str],
    ):
        self.folder = folder
        self.options = options
        self.environment = {name: value for name, value in environment.items() if name != 'command'}
        command, encoder = environment['command'], folder / ENCODER
        self.commands = {
            'train': command,
            'continue after an interruption': go_on_command(command, options, folder),
            'evaluate': '',  # its place in the order
            'load the encoder': '\n'.join(loading_lines(encoder, options.model, model_args)),
            'load and publish it': '\n'.join(hub_lines(folder)),
            'fine-tune it': fine_tuning_command(encoder, options, model_args),
        }
        self.name_last(LAST + FILE)

    def name_last(self, name: str) -> None:
        """Set the name of the checkpoint that is evaluated, which is that of a file or a folder."""
        self.commands['evaluate'] = shlex.join(
            ['python', 'validate.py', '--mim', self.options.mim, '--checkpoint', str(self.folder / name)])

    def write(self, steps_file: Path) -> None:
        """Write the page, replacing an earlier one.

        Args:
            steps_file: `metrics.jsonl` of the run.
        """
        evaluations = [
            {**{name.removeprefix('eval_'): value for name, value in line.items()},
             'epoch': line['epoch'] + (line['update'] > 0)}  # the encoder before training stands at epoch 0
            for line in read_lines(steps_file) if any(name.startswith('eval_') for name in line)
        ]
        options = self.options
        reached = f'epoch {evaluations[-1]["epoch"]} of {options.epochs}' if evaluations else 'no epoch completed'
        pictures = _spread(sorted((self.folder / PICTURES).glob('*.png')), _MAX_PICTURES)
        page = _PAGE.substitute(
            title=html.escape(f'{options.mim}, {options.model}: {self.folder.name}'),
            subtitle=f'{reached}, written {datetime.now():%Y-%m-%d %H:%M}',
            curves=_embed_curves(self.folder / CURVES),
            pictures=_embed_pictures(pictures),
            evaluations=_table(_spread(evaluations, _MAX_ROWS)),
            commands='\n'.join(
                f'<p>{html.escape(name)}</p>\n<pre>{html.escape(text)}</pre>' for name, text in self.commands.items()),
            environment=_words(self.environment),
            configuration=html.escape(yaml.safe_dump(plain_options(options), sort_keys=False)),
        )
        write_complete(self.folder / REPORT, lambda partial: partial.write_text(page, encoding='utf-8'))


def _spread(items: Sequence[Any], count: int) -> List[Any]:
    """Return at most `count` items, evenly spread, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]


def _embed_curves(path: Path) -> str:
    if not path.exists():
        return '<p class="note">Curves need matplotlib.</p>'
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _embed_pictures(paths: List[Path]) -> str:
    """Return pictures one below the other, without repeated ones: I-JEPA's pictures are all the same."""
    figures, previous = [], None
    for path in paths:
        with Image.open(path) as file:
            picture = file.convert('RGB')
        content = picture.crop((0, CAPTION_HEIGHT, *picture.size)).tobytes()
        if content != previous:
            figures.append(_embed_picture(picture, path.stem))
        previous = content
    return '\n'.join(figures)


def _embed_picture(picture: Image.Image, name: str) -> str:
    picture.thumbnail((_MAX_WIDTH, picture.height))
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{html.escape(name)}" src="data:image/jpeg;base64,{data}"></figure>'


def _table(rows: List[Dict[str, float]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [_row('th', [title_of(name) for name in names])]
    for row in rows:
        lines.append(_row('td', [_number(row.get(name)) for name in names]))
    return '<table>\n' + '\n'.join(lines) + '\n</table>'


def _number(value: Optional[float]) -> str:
    return '' if value is None else f'{value:.5g}'


def _row(tag: str, cells: Iterable[str]) -> str:
    return '<tr>' + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells) + '</tr>'


def _words(values: Dict[str, str]) -> str:
    return '<table class="words">\n' + '\n'.join(_row('td', item) for item in values.items()) + '\n</table>'
