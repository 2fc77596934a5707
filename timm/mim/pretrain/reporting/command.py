"""The command that a run was started with, and the one that goes on with it."""
import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import List


def typed_command() -> str:
    """Return the command line of this program, as a shell takes it.

    Processes that torchrun started on one machine have its command in front. Where it started them on several, only
    the part after it is known.
    """
    return shlex.join(_words())


def go_on_command(command: str, options: argparse.Namespace, folder: Path) -> str:
    """Return the command that goes on with a run, or begins it again where nothing has been saved.

    Args:
        command: The command that the run was started with.
        options: Options of the run.
        folder: Folder of the run.
    """
    added = []
    if options.resume != 'auto':  # of a flag that is given twice, the last one counts
        if options.resume and not (options.output or options.experiment):
            added += ['--output', str(folder.parent)]
        if not options.experiment:
            added += ['--experiment', folder.name]
        added += ['--resume', 'auto']
    return ' '.join([command, *map(shlex.quote, added)])


def _words() -> List[str]:
    arguments, typed = sys.argv[1:], sys.orig_argv
    # Python's own flags and -m MODULE are in the original only. Where another program called this one, it is of that.
    original = bool(arguments) and typed[-len(arguments):] == arguments
    words = list(typed) if original else [Path(sys.executable).name, *sys.argv]
    processes = os.environ.get('LOCAL_WORLD_SIZE')
    if 'TORCHELASTIC_RUN_ID' not in os.environ or processes != os.environ.get('WORLD_SIZE'):
        return words
    own = 2 if words[1] == '-u' else 1  # torchrun starts `python -u`
    return ['torchrun', '--nproc-per-node', processes, *words[own:]]
