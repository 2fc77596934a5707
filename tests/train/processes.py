"""Several processes of one run."""
import socket
import subprocess
import sys

from tiny_runs import SCRIPT, environment, tiny


def run_processes(world_size: int, flags: str, complete: bool = False) -> list:
    """Run the script in processes that find each other through the environment, as under torchrun.

    The flags are added to those of a tiny run, unless they are `complete`.
    """
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    command = [sys.executable, str(SCRIPT), *(flags if complete else tiny(flags)).split()]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR='localhost',
                MASTER_PORT=str(port)),
        )
        for rank in range(world_size)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, outputs
    return outputs
