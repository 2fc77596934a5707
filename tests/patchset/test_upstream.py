"""The real overlays on the real wheel."""
import pytest

from patchset.series import diff_tree
from patchset import PatchsetError
from patchset.project import Project, add_notice
from patchset.upstream import read_package


@pytest.fixture(scope='module')
def project():
    return Project()


@pytest.fixture(scope='module')
def tree(project):
    return project.check()


def test_files_without_an_overlay_are_upstreams_byte_by_byte(project, tree):
    stock = read_package(project.wheel())
    overlays = {path for path in stock if (project.root / path).is_file()}
    assert overlays and set(tree.stock) == set(stock)
    for path, data in project.shipped(tree).items():
        if path not in stock:
            source = path.removeprefix('timm/mim/') if path.startswith('timm/mim/recipes/') else path
            assert data == (project.root / source).read_bytes()
        elif path not in overlays:
            assert data == stock[path], path
        else:
            assert data == add_notice(tree.changed[path], path, project.pin)


def test_woven_files_hold_upstreams_lines_but_the_few_that_the_patch_removes(tree):
    for text in diff_tree(tree):
        removed = [line for line in text.splitlines() if line.startswith('-') and not line.startswith('--- ')]
        assert len(removed) < 100, text.splitlines()[0]


def test_every_changed_statement_of_a_split_is_caught(project, tree):
    """Whatever upstream changes in a method that an overlay splits, the lock or the weaving names it."""
    from patchset.lock import compare
    from patchset.lock import describe, read_lock
    from patchset.plan import make_plan
    lock = read_lock(project.lock_file)['overlays']
    checked = 0
    for path, facts in lock.items():
        stock, overlay = tree.stock[path], (project.root / path).read_bytes()
        for name in facts.get('split', {}):
            plan = make_plan(stock, overlay, path)
            split = next(s for scope in plan.scopes for n, s in scope.splits.items() if scope.prefix + n == name)
            source = plan.upstream
            line = source.lines[split.statements[-1].lineno - 1]
            start = source.starts[split.statements[-1].lineno - 1]
            changed = stock[:start] + source.indent(split.statements[-1].lineno) + b'x = 0\n' + line + stock[
                start + len(line):]
            try:
                found = compare({'overlays': {path: lock[path]}}, {'overlays': {path: describe(
                    make_plan(changed, overlay, path))}})
                assert name in [difference.name for difference in found]
            except PatchsetError as error:
                assert name.split('.')[0] in str(error)
            checked += 1
    assert checked >= 3
