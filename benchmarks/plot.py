"""Plot the results."""
from pathlib import Path
from typing import List, Tuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

from .scale import BASE  # noqa: E402

COLOURS = dict(ours='#1b6ca8', transformers='#e08214', lightly='#7fbf7b', reference='#9970ab')
METHODS = dict(mae='#1b6ca8', simmim='#e08214')


def plot(rows: List[dict], path: Path) -> None:
    """Plot how much longer the steps of peers take, and step time and memory by depth, width, image size and batch."""
    figure = plt.figure(figsize=(15, 10), layout='constrained')
    peers, scales = figure.subfigures(1, 2, width_ratios=(5, 7))
    _plot_peers(peers.subplots(), [row for row in rows if row['section'] in ('MAE', 'SimMIM', 'I-JEPA')])
    axes = scales.subplots(3, 2)
    axes[2, 1].remove()
    scale = [row for row in rows if row['section'] == 'scale']
    for axis, name, title in zip(
            axes.flat, ('depth', 'width', 'size', 'batch'), ('blocks', 'width', 'image side in pixels', 'batch')):
        _plot_scale(axis, scale, name, title)
    _plot_memory(axes[2, 0], scale)
    scales.suptitle('A training step of ours, both axes logarithmic', fontsize=11)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).quantize(64).save(path, optimize=True)  # reduces the file to a third


def _plot_peers(axis, rows: List[dict]) -> None:
    """Draw a bar for each peer and case: how much longer its step takes than ours, in percent of ours."""
    peers = [row for row in rows if row['variant'] != 'ours']
    differences = [100 * (row['ratio'] - 1) for row in peers]
    labels = [f'{row["section"]}, {row["case"].split(", batch")[0]}' for row in peers]
    bars = axis.barh(range(len(peers)), differences, color=[COLOURS[row['variant']] for row in peers])
    axis.bar_label(bars, [f'{difference:+.0f} %' for difference in differences], padding=3, fontsize=9)
    axis.set_yticks(range(len(peers)), labels, fontsize=9)
    axis.axvline(0, color='black', linewidth=1)
    axis.margins(x=0.2)
    axis.invert_yaxis()
    axis.set_xlabel('time that a step takes longer than ours, %')
    axis.set_title('Steps of other programs', fontsize=11)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for name, colour in COLOURS.items() if name != 'ours']
    axis.legend(handles, [name for name in COLOURS if name != 'ours'], fontsize=9)


def _plot_scale(axis, rows: List[dict], name: str, title: str) -> None:
    base = {key: value for key, value in BASE.items() if key not in (name, 'batch')}
    batches = sorted({row['batch'] for row in rows})
    times = []
    for method, colour in METHODS.items():
        points = sorted(
            (row for row in rows if row['method'] == method and all(row[k] == v for k, v in base.items())
             and (name == 'batch' or row['batch'] == batches[len(batches) // 2])), key=lambda row: row[name])
        values = [row[name] for row in points]
        axis.loglog(values, [row['step_ms'] for row in points], 'o-', color=colour, label=method)
        times += [row['step_ms'] for row in points]
        axis.set_xticks(values, [str(value) for value in values])
    axis.set_yticks(*_ticks(times))
    axis.minorticks_off()
    axis.set_xlabel(title)
    axis.set_ylabel('ms')
    axis.legend(fontsize=9)


def _plot_memory(axis, rows: List[dict]) -> None:
    for method, colour in METHODS.items():
        points = [row for row in rows if row['method'] == method]
        axis.loglog(
            [row['step_ms'] for row in points], [row['peak_mib'] for row in points], 'o', color=colour, label=method)
    axis.set_xticks(*_ticks([row['step_ms'] for row in rows]))
    axis.set_yticks(*_ticks([row['peak_mib'] for row in rows]))
    axis.minorticks_off()
    axis.set_xlabel('ms')
    axis.set_ylabel('peak memory, MiB')
    axis.legend(fontsize=9)


def _ticks(values: List[float]) -> Tuple[List[int], List[str]]:
    """Return round numbers (1, 2 and 5 times powers of ten) around some values, and their texts."""
    series = [digit * 10 ** power for power in range(7) for digit in (1, 2, 5)]
    inside = [tick for tick in series if min(values) / 2.5 <= tick <= max(values) * 2.5]
    return inside, [f'{tick:,}' for tick in inside]
