"""The command line of the patch set."""
import argparse
import sys
from pathlib import Path
from typing import List, Optional

from .apply import UpstreamDiffers, apply as apply_to
from .diff import diff_tree, summary
from .errors import PatchsetError
from .project import Project
from .tree import Tree


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


def count(tree: Tree) -> str:
    woven = sum(path in tree.stock for path in tree.changed)
    return f'{len(tree.woven)} files, {woven} woven, {len(tree.changed) - woven} new'


COMMANDS = {command.__name__: command for command in (build, check, lock, diff, apply)}


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
