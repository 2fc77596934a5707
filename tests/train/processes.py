"""Several processes of one run."""
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, Optional

from child_runs import start_ranks


def run_processes(
        world_size: int,
        flags: str,
        complete: bool = False,
        faults: Optional[Dict[int, Callable]] = None,
) -> List[str]:
    """Run the script in processes that find each other through the environment, as under torchrun.

    The flags are added to those of a tiny run, unless they are `complete`.

    `faults` are called in a process before the script, by rank.

    Returns:
        What each process printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = start_ranks(world_size, flags, Path(folder), faults, complete)
        codes = [run.wait() for run in runs]
        outputs = [run.output for run in runs]
    assert codes == [0] * world_size, outputs
    return outputs
