"""The registered models of upstream's pinned release, and which of them the fork serves.

`registry.csv` lists name, module, class, kind (transformer, hybrid, token, cnn), parameters, prefix tokens and input
size.
"""
import csv
import importlib
from pathlib import Path
from typing import List, NamedTuple


class Entry(NamedTuple):
    name: str
    module: str
    class_name: str
    kind: str
    parameters: int


def registered() -> List[Entry]:
    """All models of the release."""
    with open(Path(__file__).with_name('registry.csv'), newline='') as file:
        return [
            Entry(row['model'], row['module'], row['class'], row['kind'], int(row['params']))
            for row in csv.DictReader(file)]


def model_class(entry: Entry) -> type:
    return getattr(importlib.import_module(f'timm.models.{entry.module}'), entry.class_name)


def served() -> List[Entry]:
    """The models whose class has embed and forward_stages."""
    from timm.models import has_embed_stages
    return [entry for entry in registered() if has_embed_stages(model_class(entry))]
