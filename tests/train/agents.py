"""Agents of torchrun, as `torchrun --nnodes` starts one on each machine.

An agent and its ranks are forked from a process that has imported everything, so that they cost what they train. They
form one process group, and SIGKILL of the group is what the loss of a machine does. (torchrun itself gives every rank a
session of its own: a test could not kill them together.)
"""
import os
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Optional
from unittest import mock

import torch.distributed.run as torch_run
from child_runs import ChildRun, free_port, run_script

_config_from_args = torch_run.config_from_args


def start_agents(flags: str, folder: Path, faults: Optional[Dict[int, Callable]] = None) -> List[ChildRun]:
    """Start two agents with two ranks each. Both have the same command.

    Args:
        flags: Flags of the run besides those of a tiny run.
        folder: Folder for what the agents and their ranks print.
        faults: What is called in a process before the script, by rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = shlex.split(
        f'--nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:{free_port()} train.py')
    return [
        ChildRun(flags, folder / f'agent{number}.log', target=partial(_run_agent, words, faults or {}))
        for number in range(2)]


def _run_agent(words: List[str], faults: Dict[int, Callable], arguments: List[str]) -> None:
    def forked(args):
        config, *_ = _config_from_args(args)
        return replace(config, start_method='fork', monitor_interval=0.02), _run_rank, [faults, *arguments]

    with mock.patch.object(torch_run, 'config_from_args', forked):
        torch_run.main(words)


def _run_rank(faults: Dict[int, Callable], *arguments: str) -> None:
    run_script(list(arguments), faults.get(int(os.environ['RANK'])))
