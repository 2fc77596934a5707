"""Plot the results."""
from pathlib import Path
from typing import List

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from .scale import BASE  # noqa: E402

COLOURS = dict(ours='#1b6ca8', transformers='#e08214', lightly='#7fbf7b', reference='#9970ab')
METHODS = dict(mae='#1b6ca8', simmim='#e08214')


def plot(rows: List[dict], path: Path) -> None:
    """Plot step times of peers divided by ours, and step time and memory by depth, width, image size and batch."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 9))
    _plot_peers(axes[0, 0], [row for row in rows if row['section'] in ('MAE', 'SimMIM', 'I-JEPA')])
    scale = [row for row in rows if row['section'] == 'scale']
    for axis, name, title in zip(
            (axes[0, 1], axes[0, 2], axes[1, 0], axes[1, 1]), ('depth', 'width', 'size', 'batch'),
            ('blocks', 'width', 'image side in pixels', 'batch')):
        _plot_scale(axis, scale, name, title)
    _plot_memory(axes[1, 2], scale)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).quantize(64).save(path, optimize=True)  # reduces the file to a third


def _plot_peers(axis, rows: List[dict]) -> None:
    peers = [row for row in rows if row['variant'] != 'ours']
    labels = [f'{row["section"]}, {row["case"].split(", batch")[0]}' for row in peers]
    axis.barh(
        range(len(peers)), [row['ratio'] for row in peers], color=[COLOURS[row['variant']] for row in peers])
    axis.set_yticks(range(len(peers)), labels, fontsize=6)
    axis.axvline(1, color='black', linewidth=1)
    axis.set_xlim(0.8, None)
    axis.invert_yaxis()
    axis.set_xlabel('time of a step divided by ours')
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for name, colour in COLOURS.items() if name != 'ours']
    axis.legend(handles, [name for name in COLOURS if name != 'ours'], fontsize=7)


def _plot_scale(axis, rows: List[dict], name: str, title: str) -> None:
    base = {key: value for key, value in BASE.items() if key not in (name, 'batch')}
    batches = sorted({row['batch'] for row in rows})
    for method, colour in METHODS.items():
        points = sorted(
            (row for row in rows if row['method'] == method and all(row[k] == v for k, v in base.items())
             and (name == 'batch' or row['batch'] == batches[len(batches) // 2])), key=lambda row: row[name])
        values = [row[name] for row in points]
        axis.loglog(values, [row['step_ms'] for row in points], 'o-', color=colour, label=f'{method}, step')
        axis.loglog(values, [row['products_ms'] for row in points], 'x--', color=colour, label=f'{method}, products')
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
    axis.set_xlabel(title)
    axis.set_ylabel('ms')
    axis.legend(fontsize=7)


def _plot_memory(axis, rows: List[dict]) -> None:
    for method, colour in METHODS.items():
        points = [row for row in rows if row['method'] == method]
        axis.loglog(
            [row['step_ms'] for row in points], [row['peak_mib'] for row in points], 'o', color=colour, label=method)
    axis.set_xlabel('ms of a step')
    axis.set_ylabel('peak MiB of a step')
    axis.legend(fontsize=7)
