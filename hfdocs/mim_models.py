"""Writes the page of models and methods, `python hfdocs/mim_models.py` with timm installed."""
from collections import Counter
from pathlib import Path
from typing import List

from timm.mim import list_mims
from timm.mim.factory import unsupported_model
from timm.models import get_model_class, has_embed_stages, list_models, list_modules

PAGE = Path(__file__).with_name('source') / 'mim_models.mdx'

HEAD = """\
# Models for Masked Image Modeling

The table shows, for each family (a file of `timm/models`), how many of its models each method of `timm.mim` supports, \
and why it does not support the others. `timm.mim.list_mim_models(method)` lists the models by name, and \
`timm.mim.create_mim` explains why it refuses a model.
"""

SHORT_REASONS = {
    'has no patch tokens that can be replaced before positions are added': 'no patch tokens apart from positions',
    'needs its whole grid of tokens and cannot drop any': 'cannot drop tokens',
    'gives no feature map': 'no feature map',
    'has no grid of patches that divides an image: convolutions of its stem do not pad': 'no grid of patches',
    'mixes cells by attention, which masks of cells do not serve; MAE or SimMIM does': 'attention',
    'mixes cells by linear or recurrent layers, which masks of cells do not serve; SimMIM does': 'mixes cells',
    'has convolutions with weights of each sample, and folds samples into channels': 'weights of each sample',
    'has patches of 7 or 14 pixels, the decoder needs a power of two; FCMAE serves it': 'patches of 7 or 14 pixels',
}


def cell(method: str, names: List[str]) -> str:
    """Return how many models a method supports, and why it does not support the others."""
    counts = Counter()
    for name in names:
        model_cls = get_model_class(name)
        reason = unsupported_model(method, name)
        reason = reason and reason.replace(f'{model_cls.__name__} ', '', 1).replace(f'{name} ', '', 1)
        counts[SHORT_REASONS.get(reason, reason)] += 1
    served = counts.pop(None, 0)
    if not served:
        return ', '.join(counts)
    return ', '.join([str(served), *(f'{count} {reason}' for reason, count in counts.items())])


def table() -> List[List[str]]:
    """Return the rows: a family, its number of models, and one cell for each method."""
    rows, everything = [], []
    for family in list_modules():
        names = [name for name in list_models(module=family) if has_embed_stages(name)]
        if names:
            rows.append([f'`{family}`', str(len(names)), *(cell(method, names) for method in list_mims())])
            everything += names
    counts = [cell(method, everything).split(',')[0] for method in list_mims()]
    return [*rows, ['all', str(len(everything)), *counts]]


def page() -> str:
    """Return the page for the models as they are in the code."""
    header = ['Family', 'Models', *(f'`{method}`' for method in list_mims())]
    rows = [header, ['---', '---:', *('---' for _ in list_mims())], *table()]
    return HEAD + '\n' + '\n'.join(f'| {" | ".join(row)} |' for row in rows) + '\n'


if __name__ == '__main__':
    PAGE.write_text(page())
