"""The command line of the patch set."""
import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Iterable, Iterator, List, Optional

from .apply import UpstreamDiffers, apply as apply_to
from .diff import diff_tree, summary
from .errors import PatchsetError
from .project import Project
from .proof import Proved
from .tree import Tree
from .upgrade import plan_upgrade, prove_upgrade, write_upgrade


def build(project: Project) -> None:
    """Weave timm into build/timm, and unpack upstream's into build/stock/timm."""
    print(f'{project.build_folder / "timm"}: {count(project.build(stock=True))}')


def check(project: Project) -> None:
    """Verify that everything weaves and stands on what the lock says; write nothing."""
    print(f'{project.lock_file.name} holds: {count(project.check())}')


def lock(project: Project) -> None:
    """Rewrite upstream.lock.json for the overlays as they are, and print what changed."""
    differences = project.update_lock()
    for difference in differences:
        print(difference.news)
    if not differences:
        print(f'{project.lock_file.name} is up to date')


def diff(project: Project) -> None:
    """Print the patch between upstream and the woven tree."""
    texts = list(diff_tree(project.weave()))
    for text in texts:
        sys.stdout.buffer.write(text.encode(errors='surrogateescape'))
    sys.stdout.flush()
    print(summary(texts), file=sys.stderr)


def apply(project: Project, tree: str, only: Optional[str], merge: bool) -> None:
    """Turn a git tree of upstream into the pull request, so that `git diff` there shows it."""
    applied = apply_to(project, Path(tree), only, merge)
    for note in applied.notes:
        print(note)
    print(f'{tree}: {len(applied.written)} files written, {applied.settled} were right already')


def upgrade(project: Project, version: str, keep: List[str], all_models: bool) -> None:
    """Move the patch set to another release of upstream: merge, prove, write the overlays and the lock."""
    planned = plan_upgrade(project, version, keep)
    for note in planned.notes:
        print(note, flush=True)
    kinds = Counter(note.kind for note in planned.notes)
    print(', '.join(f'{number} {kind}' for kind, number in sorted(kinds.items())) or 'nothing differs', flush=True)
    if planned.left:
        raise PatchsetError(
            '', f'{len(planned.left)} things are left to do by hand, nothing is written: make the overlays fit '
                f'{version}, or say --keep PATH:NAME where one is right as it is')
    proved = list(report(prove_upgrade(project, planned, all_models)))
    failed = sum(model.problem is not None for model in proved)
    if failed or not proved:
        raise PatchsetError('', f'{failed} of {len(proved)} models are not stock timm {version}, nothing is written')
    write_upgrade(project, planned)
    print(f'{len(proved)} models are stock timm {version}, operation for operation; overlays and lock are written.\n'
          f'By hand: {", ".join(PINNED_BESIDES)}')


PINNED_BESIDES = ('tests/upstream/sdist.txt', 'tests/equivalence/registry.csv', 'patchset/releases.json', 'README.md')


def report(models: Iterable[Proved]) -> Iterator[Proved]:
    for model in models:
        if model.problem or model.reason:
            what = model.problem or f'cannot be compared, stock timm fails: {model.reason}'
            print(f'{model.name}: {what}', flush=True)
        if not model.reason:
            yield model


def count(tree: Tree) -> str:
    woven = sum(path in tree.stock for path in tree.changed)
    return f'{len(tree.woven)} files, {woven} woven, {len(tree.changed) - woven} new'


COMMANDS = {command.__name__: command for command in (build, check, lock, diff, apply, upgrade)}


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m patchset', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    parsers = {
        name: commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        for name, command in COMMANDS.items()
    }
    add = parsers['apply'].add_argument
    add('tree', metavar='TREE', help='root of a git tree of upstream, at whatever commit')
    add('--only', metavar='STEP', help="one step: a family (vision_transformer), or 'mim', all the rest, last")
    add('--merge', action='store_true', help='merge where the tree differs from the pinned release, and leave what '
                                             'does not merge')
    add = parsers['upgrade'].add_argument
    add('version', metavar='VERSION', help='a release of upstream')
    add('--keep', action='append', default=[], metavar='PATH:NAME',
        help='what upstream changed, and the overlay is right about as it is')
    add('--all-models', action='store_true', help='prove every model, not one of each class')
    return parser


def main(arguments: Optional[List[str]] = None, project: Optional[Project] = None) -> int:
    """Returns the exit code, 2 for a mistake that the user can mend."""
    options = vars(create_parser().parse_args(arguments))
    command = COMMANDS[options.pop('command')]
    try:
        command(project or Project(), **options)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has seen enough
    except UpstreamDiffers as error:
        for note in error.notes:
            print(note, file=sys.stderr)
        print(f'patchset: {error}', file=sys.stderr)
        return 2
    except (PatchsetError, OSError) as error:
        print(f'patchset: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
