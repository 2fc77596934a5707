"""The pure core: upstream's file and an overlay give the woven file.

What an overlay does not name stays as it is, byte by byte. See `overlay.py` for what an overlay may say.
"""
from typing import List

from .bases import base_edits
from .blocks import arrange
from .edits import Edit, apply_edits
from .imports import import_edits
from .names import check_names
from .placement import attribute_edits, end_edits, place_edits
from .plan import Plan, ScopePlan, make_plan
from .protocol import check_free, served_classes
from .render import check_comments
from .source import parse


def weave(upstream: bytes, overlay: bytes, path: str) -> bytes:
    """Args:
        path: The file's path, for messages.
    """
    return weave_plan(make_plan(upstream, overlay, path), path)


def weave_plan(plan: Plan, path: str) -> bytes:
    check_free(plan.upstream, served_classes(plan.overlay.source.tree), path)
    edits = import_edits(plan.upstream, plan.overlay)
    # classes first: what is added at the end of a class stands before what is added after the class
    for scope in plan.classes + [plan.module]:
        edits += scope_edits(plan, scope)
    woven = apply_edits(plan.upstream.data, edits)
    check_names(plan, parse(woven, f'{path} (woven)'))
    return woven


def scope_edits(plan: Plan, scope: ScopePlan) -> List[Edit]:
    for name, split in scope.splits.items():
        check_comments(plan.upstream, plan.overlay, split, f'{scope.where}{name}')
    places, attributes, loose = arrange(plan, scope)
    return (
        base_edits(plan, scope)
        + [edit for blocks in places for edit in place_edits(plan, scope, blocks)]
        + attribute_edits(plan, scope, attributes)
        + end_edits(plan, scope, loose)
    )
