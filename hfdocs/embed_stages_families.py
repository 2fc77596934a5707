"""Writes the page of classes with embed and stages, `python hfdocs/embed_stages_families.py` with timm installed."""
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, List

import torch

import timm
from timm.models import get_model_class, has_embed_stages, is_model_pretrained, list_models

SMALL = re.compile(r'(^|_)(atto|femto|pico|nano|x*small|mini|tiny|lite|x*s|ti?|[bls]?0)(\d\d)?(_|$)')  # in a name
PAGE = Path(__file__).with_name('source') / 'embed_stages_families.mdx'

HEAD = """\
# Classes with Embed and Stages

All classes of `timm.models` that have `embed` and `forward_stages`, with an example model of each class. The table \
shows what `embed` returns for one image of the size of that model, which is what the stages get, and what \
`forward_stages` returns for it. The last two columns show whether the class can drop tokens (`keep_tokens`), and \
whether it has a feature map (`features_to_map`); a class that cannot raises an error with the reason.
"""
HEADER = [
    'Class', 'Models', 'For example', '`embed` returns', '`forward_stages` returns', 'Drops tokens', 'Gives a map',
]


def describe(value: Any) -> str:
    """Return a tensor as its shape, a named tuple as its fields, and any other value as text."""
    if isinstance(value, torch.Tensor):
        return f'({", ".join(map(str, value.shape))})'
    if hasattr(value, '_fields'):
        return f'{type(value).__name__}: ' + ', '.join(f'{f} {describe(v)}' for f, v in zip(value._fields, value))
    if isinstance(value, dict):
        return ', '.join(f'{name} {describe(v)}' for name, v in value.items())
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(describe, value))}]'
    return str(value)


@torch.no_grad()
def row(model_cls: type, names: List[str]) -> List[str]:
    """Return the row of a class."""
    # an example that has published weights and is small, so that it is built quickly
    name = min(names, key=lambda name: (not is_model_pretrained(name), not SMALL.search(name), len(name), name))
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=0).eval()
        image = torch.empty(1, *model.pretrained_cfg['input_size'])
    embedded = model.embed(image)
    features = model.forward_stages(embedded)
    yes_no = [
        'no' if getattr(getattr(model_cls, method), 'refused', False) else 'yes'
        for method in ('keep_tokens', 'features_to_map')]
    return [f'`{model_cls.__name__}`', str(len(names)), f'`{name}`', describe(embedded), describe(features), *yes_no]


def page() -> str:
    """Return the page for the classes as they are in the code."""
    names = defaultdict(list)
    for name in list_models():
        if has_embed_stages(name):
            names[get_model_class(name)].append(name)
    rows = [row(model_cls, names[model_cls]) for model_cls in sorted(names, key=lambda model_cls: model_cls.__name__)]
    lines = [HEADER, ['---', '---:', *('---' for _ in HEADER[2:])], *rows]
    return HEAD + '\n' + '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


if __name__ == '__main__':
    PAGE.write_text(page())
