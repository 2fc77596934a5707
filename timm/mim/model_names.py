""" Names of Models, and What a Misspelt One May Have Meant
"""
from difflib import get_close_matches
from typing import List, Optional, Sequence

from timm.models import is_model, list_models
from timm.models._registry import get_arch_name

__all__ = ['is_known_model', 'nearest_names', 'unknown_model']


def is_known_model(name: str) -> bool:
    """ Whether `timm.create_model` knows a model of this name; names with a colon, as of a hub, are not looked up.
    """
    return ':' in name or is_model(get_arch_name(name))


def nearest_names(name: str, names: Sequence[str], count: int = 3) -> List[str]:
    """ Names that a misspelt one may have meant: first those that begin with it, the shortest first, then similar ones.

    A last part that no name has is left out: `vit_tiny_16` is looked for as `vit_tiny`.

    Args:
        name: Name that does not exist.
        names: Names that exist.
        count: How many to return at most.
    """
    similar = get_close_matches(name, names, n=count)
    start = name
    while start:
        longer = sorted((n for n in names if n.startswith(start)), key=lambda n: (len(n), n))
        if longer:
            break
        start = start.rpartition('_')[0]
    begun = longer if start else []
    ordered = [*begun, *similar] if start == name else [*similar, *begun]
    return list(dict.fromkeys(ordered))[:count]


def unknown_model(name: str, names: Optional[Sequence[str]] = None, listed_by: str = 'timm.list_models()') -> str:
    """ What is wrong, in one sentence, with a name that no model has, and what may have been meant.

    Args:
        name: Name that does not exist.
        names: Names to choose from, of all models if None.
        listed_by: Call that lists them.
    """
    near = nearest_names(name, list_models() if names is None else names)
    hint = f'did you mean {", ".join(near)}?' if near else f'{listed_by} names those that exist.'
    return f"'{name}' is no model of timm; {hint}"
