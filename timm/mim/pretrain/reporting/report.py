"""A run as one static page: curves, pictures over time, numbers, configuration and environment, commands."""
import argparse
import base64
import html
import io
import shlex
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any, Dict, Iterable, List, Optional, Sequence

import yaml
from PIL import Image

from ...visualize import CAPTION_HEIGHT
from ..encoder_files import ENCODER, fine_tuning_command, hub_lines, loading_lines
from ..files import write_complete
from ..run_folder import LAST, PICTURES, plain_options
from .command import go_on_command
from .curves import CURVES, read_lines

REPORT = 'report.html'
_MAX_PICTURES = 8  # of those that there are, evenly spread
_MAX_ROWS = 40
_MAX_WIDTH = 1200  # of a picture, in pixels

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
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="note">$subtitle</p>
<h2>Curves</h2>
$curves
<h2>Evaluations</h2>
<div class="scroll">$evaluations</div>
<h2>Held-out images over time</h2>
$pictures
<h2>Commands</h2>
$commands
<h2>Environment</h2>
$environment
<h2>Configuration</h2>
<pre>$configuration</pre>
</body>
</html>
''')


class Report:
    """Writes `report.html`, which needs no other file and no network.

    Args:
        folder: Folder of the run.
        options: Options of the run.
        model_args: Arguments that the model was built with.
        environment: What the run runs on, by name.
    """

    def __init__(
            self,
            folder: Path,
            options: argparse.Namespace,
            model_args: Dict[str, Any],
            environment: Dict[str, str],
    ):
        self.folder = folder
        self.options = options
        self.environment = {name: value for name, value in environment.items() if name != 'command'}
        command, encoder = environment['command'], folder / ENCODER
        self.commands = {
            'train': command,
            'go on after an interruption': go_on_command(command, options, folder),
            'evaluate': shlex.join(
                ['python', 'validate.py', '--mim', options.mim, '--checkpoint', str(folder / LAST)]),
            'load the encoder': '\n'.join(loading_lines(encoder, options.model, model_args)),
            'load and publish it': '\n'.join(hub_lines(folder)),
            'fine-tune it': fine_tuning_command(encoder, options, model_args),
        }

    def write(self, steps_file: Path) -> None:
        """Write the page anew.

        Args:
            steps_file: `metrics.jsonl` of the run.
        """
        evaluations = [
            {name.removeprefix('eval_'): value for name, value in line.items()}
            for line in read_lines(steps_file) if any(name.startswith('eval_') for name in line)
        ]
        options = self.options
        reached = f'epoch {evaluations[-1]["epoch"] + 1} of {options.epochs}' if evaluations else 'no epoch completed'
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
    """As many items at most, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]


def _embed_curves(path: Path) -> str:
    if not path.exists():
        return '<p class="note">There are no curves without matplotlib.</p>'
    return f'<img alt="curves" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _embed_pictures(paths: List[Path]) -> str:
    """Pictures one below the other, without those that show nothing new, as all but the first of I-JEPA."""
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
    lines = [_row('th', [name.replace('_', ' ') for name in names])]
    for row in rows:
        lines.append(_row('td', [_number(row.get(name)) for name in names]))
    return '<table>\n' + '\n'.join(lines) + '\n</table>'


def _number(value: Optional[float]) -> str:
    return '' if value is None else f'{value:.5g}'


def _row(tag: str, cells: Iterable[str]) -> str:
    return '<tr>' + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells) + '</tr>'


def _words(values: Dict[str, str]) -> str:
    return '<table class="words">\n' + '\n'.join(_row('td', item) for item in values.items()) + '\n</table>'
