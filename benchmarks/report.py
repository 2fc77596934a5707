"""Write measurements as Markdown tables, with the machine, versions and date."""
import datetime
import importlib.metadata
import platform
from pathlib import Path
from typing import Dict, List

import torch

PACKAGES = ('timm', 'torch', 'torchvision', 'transformers', 'lightly', 'pillow')
HEADINGS = dict(
    refactor="Stock's `forward_features` and `forward_stages(embed(x))`, inference",
    MAE='MAE, a training step', SimMIM='SimMIM, a training step',
    floor='Our training step, and its matrix products and attentions alone',
    loading='From JPEG files to a normalised batch, one worker', masks='Masks of a batch',
    scale='A training step by size, float32')
HEADINGS['I-JEPA'] = 'I-JEPA, a training step'


def describe_machine(device: torch.device) -> Dict[str, str]:
    machine = dict(
        date=datetime.date.today().isoformat(), processor=_processor(), threads=str(torch.get_num_threads()),
        python=platform.python_version())
    if device.type == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name()
    return {**machine, **{name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)}}


def _processor() -> str:
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def to_markdown(machine: Dict[str, str], rows: List[dict], rounds: int) -> str:
    """Return the tables of all sections. A ratio above 1 means that the variant is slower than ours."""
    lines = [
        '<!-- written by python -m benchmarks -->',
        ', '.join(f'{name} {value}' for name, value in machine.items()) + '.',
        f'{rounds} rounds after warm-up; variants take turns within a round. Times in milliseconds. "time / ours" is '
        'the time divided by the time of ours in the same round, median over the rounds: above 1 the variant is '
        'slower. Memory is the peak of a step beyond weights and optimizer state.']
    for section in dict.fromkeys(row['section'] for row in rows):
        lines += ['', f'**{HEADINGS.get(section, section)}**', '']
        lines += _TABLES.get(section, _variants)([row for row in rows if row['section'] == section])
    return '\n'.join(lines) + '\n'


def _table(titles: List[str], rows: List[List[str]]) -> List[str]:
    return ['| ' + ' | '.join(cells) + ' |' for cells in (titles, ['---'] * len(titles), *rows)]


def _variants(rows: List[dict]) -> List[str]:
    return _table(['case', 'variant', 'median', 'minimum', 'time / ours', 'peak MiB'], [[
        row['case'], row['variant'], f'{row["median_ms"]:.1f}', f'{row["min_ms"]:.1f}',
        f'{row["ratio"]:.3f}' if 'ratio' in row else '', f'{row["peak_mib"]:.0f}' if 'peak_mib' in row else '',
    ] for row in rows])


def _refactor(rows: List[dict]) -> List[str]:
    cases = [(ours, stock) for ours, stock in zip(rows[::2], rows[1::2])]
    return _table(['model', 'ours', 'stock', 'stock / ours', 'ratio of minima', 'ATen calls, both'], [[
        ours['case'], f'{ours["median_ms"]:.1f}', f'{stock["median_ms"]:.1f}', f'{stock["ratio"]:.3f}',
        f'{stock["ratio_of_minima"]:.3f}', str(ours['aten_calls'] or ''),
    ] for ours, stock in cases])


def _floor(rows: List[dict]) -> List[str]:
    return _table(['case', 'step', 'products and attentions', 'ratio'], [[
        row['case'], f'{row["step_ms"]:.1f}', f'{row["products_ms"]:.1f}', f'{row["ratio"]:.3f}'] for row in rows])


def _scale(rows: List[dict]) -> List[str]:
    return _table(['method', 'depth', 'width', 'image', 'batch', 'step', 'products', 'peak MiB'], [[
        row['method'], str(row['depth']), str(row['width']), str(row['size']), str(row['batch']),
        f'{row["step_ms"]:.0f}', f'{row["products_ms"]:.0f}', f'{row["peak_mib"]:.0f}'] for row in rows])


def _plain(rows: List[dict]) -> List[str]:
    names = [name for name in rows[0] if name not in ('section', 'times_ms')]
    return _table(names, [[
        f'{row[name]:.4g}' if isinstance(row.get(name), float) else str(row.get(name, '')) for name in names
    ] for row in rows])


_TABLES = dict(refactor=_refactor, floor=_floor, scale=_scale, loading=_plain)
