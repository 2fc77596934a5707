"""The command line of the patch set."""
import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Iterable, Iterator, List, Optional

from .series import diff_tree, summary, write_series
from . import PatchsetError
from .project import Project, Tree
from .upgrade import Proved, plan_upgrade, prove_upgrade, write_upgrade


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


def series(project: Project, clone: str, output: Optional[str], only: List[str], cover: bool, dry_run: bool) -> None:
    """Write the pull request as a series of patches for `git am`, against a clone of upstream."""
    if not dry_run and output is None:
        raise PatchsetError('series', 'needs -o DIR, the folder for the patches, or --dry-run for a listing')
    made = write_series(project, Path(clone), None if dry_run else Path(output), only, cover)
    for patch in made.patches:
        subject = patch.commit.message.splitlines()[0]
        print(f'{patch.step.name:24} +{patch.added:<5} -{patch.removed:<4} {subject}')
    for note in made.notes:
        print(note, file=sys.stderr)
    print(f'{output}: {len(made.written)} files' if made.written else f'{len(made.patches)} patches, none is written')


def upgrade(project: Project, version: str, without: List[str], keep: List[str], all_models: bool) -> None:
    """Move the patch set to another release of upstream: compare, prove, write the lock."""
    planned = plan_upgrade(project, version, keep, without)
    for finding in planned.left:
        print(finding, flush=True)
    kinds = Counter(finding.kind for finding in planned.findings)
    print(', '.join(f'{kinds[kind]} {kind}' for kind in ('unchanged', 'carried', 'edited', 'left')), flush=True)
    for note in planned.notes:
        print(note)
    if planned.left:
        raise PatchsetError(
            '', f'{len(planned.left)} places are left to a person, nothing is written: make the overlays fit '
                f'{version}, leave a family out (--without FAMILY), or say --keep PATH:NAME where the overlay is right')
    proved = list(report(prove_upgrade(project, planned, all_models)))
    failed = [model for model in proved if model.problem or model.reason and model.place not in keep]
    if failed or not proved:
        raise PatchsetError(
            '', f'{len(failed)} of {len(proved)} models are not proven to be stock timm {version}, nothing is written; '
                'a model that stock timm itself cannot run needs --keep PATH:CLASS')
    write_upgrade(project, planned)
    kept = sum(bool(model.reason) for model in proved)
    print(f'{len(proved) - kept} models are stock timm {version}, {kept} unproven ones are kept; the lock is written.\n'
          f'By hand: {", ".join(PINNED_BESIDES)}')


PINNED_BESIDES = ('tests/upstream/sdist.txt', 'tests/equivalence/registry.csv', 'README.md',
                  'docs/installing.md')


def report(models: Iterable[Proved]) -> Iterator[Proved]:
    """Say what was proven, one line after the other while it runs."""
    for number, model in enumerate(models, 1):
        said = model.problem or (f'cannot be proven, stock timm fails: {model.reason}' if model.reason else 'equal')
        print(f'{number:4} {model.name} ({model.place}): {said}', flush=True)
        yield model


def count(tree: Tree) -> str:
    woven = sum(path in tree.stock for path in tree.changed)
    return f'{len(tree.woven)} files, {woven} woven, {len(tree.changed) - woven} new'


COMMANDS = {command.__name__: command for command in (build, check, lock, diff, series, upgrade)}


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m patchset', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    parsers = {
        name: commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        for name, command in COMMANDS.items()
    }
    add = parsers['series'].add_argument
    add('clone', metavar='CLONE', help='a clone of upstream that holds the pinned release; nothing is written into it')
    add('-o', '--output', metavar='DIR', help='folder for the patches; those of an earlier series there are replaced')
    add('--only', action='append', default=[], metavar='STEP',
        help='a family, a fix or a group of steps, may be repeated; --dry-run lists them')
    add('--cover', action='store_true', help='write a cover letter too')
    add('--dry-run', action='store_true', help='list the patches and their lines, write nothing')
    add = parsers['upgrade'].add_argument
    add('version', metavar='VERSION', help='a release of upstream')
    add('--without', action='append', default=[], metavar='FAMILY',
        help="leave a family's overlay out; it waits in without/, and the next upgrade tries it again")
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
    except (PatchsetError, OSError) as error:
        print(f'patchset: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
