"""Curves of a run as a picture."""
import json
import logging
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Tuple

from ..files import write_complete

_logger = logging.getLogger(__name__)

CURVES = 'curves.png'
_NOTE = "no curves.png without matplotlib: pip install matplotlib, or the extra 'plots'."


def can_draw_curves() -> bool:
    """Whether matplotlib is there; says what is missing if not."""
    if find_spec('matplotlib') is not None:
        return True
    _logger.info(_NOTE)
    return False


def read_lines(path: Path) -> List[Dict[str, Any]]:
    """Read the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def draw_curves(path: Path, lines: List[Dict[str, Any]]) -> None:
    """Write the curves of a run as a picture, complete or not at all.

    Args:
        path: Picture to write.
        lines: Lines of `metrics.jsonl`.
    """
    figure = create_figure(lines)
    write_complete(path, lambda partial: figure.savefig(partial, format='png', dpi=110))


def create_figure(lines: List[Dict[str, Any]]):
    """Draw loss and learning rate, what was measured on held-out images, and what probes found.

    Args:
        lines: Lines of `metrics.jsonl`.

    Returns:
        Figure of matplotlib.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure and looks for a display

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
    """Sort what was measured into panels: errors, the variety of targets, accuracies of probes."""
    names = list(dict.fromkeys(name for line in evaluations for name in line if name.startswith('eval_')))
    variety = [name for name in names if name in ('eval_target_std', 'eval_target_rank')]
    probes = [name for name in names if '_top1' in name]
    errors = [name for name in names if name not in variety + probes]
    groups = [('held-out error', errors), ('variety of the targets', variety), ('accuracy of probes, %', probes)]
    return [(title, names) for title, names in groups if names]


def _draw_loss(axis, steps: List[Dict[str, Any]]) -> None:
    updates = [line['update'] for line in steps]
    losses = [math.nan if line['loss'] is None else line['loss'] for line in steps]
    axis.plot(updates, losses, color='C0', label='training loss')
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
        label = name.removeprefix('eval_').replace('_', ' ')
        place.plot(
            *zip(*points),
            color=f'C{number}',
            linestyle='--' if baseline else '-',
            marker=None if baseline and len(points) > 1 else '.',
            label=label,
        )
        if title == 'variety of the targets':
            place.set_ylim(bottom=0)  # they are looked at for a collapse
        if place is not axis:
            place.set_ylabel(label, color=f'C{number}')
    if title == 'variety of the targets':
        axis.set_ylabel(first.removeprefix('eval_').replace('_', ' '), color='C0')
    else:
        axis.legend(fontsize='small')
