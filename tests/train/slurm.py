"""A Slurm that only does what `examples/slurm.sh` asks for: `srun` and `scontrol` on PATH, served by the test.

The script runs as Slurm would start it. Its `srun` hands the command to this process, which forks the tasks.
"""
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

from child_runs import TIMEOUT, ChildRun, free_port

SCRIPT = Path(__file__).parents[2] / 'examples' / 'slurm.sh'
_PROGRAM = ['python', '-m', 'timm.mim.pretrain']

_SRUN = '''#!/bin/bash
printf '%s\\n' "$MASTER_ADDR" "$MASTER_PORT" "$@" > "$FAKE_SLURM/step.partial"
mv "$FAKE_SLURM/step.partial" "$FAKE_SLURM/step"
until [ -e "$FAKE_SLURM/code" ]; do sleep 0.02; done
code=$(cat "$FAKE_SLURM/code")
rm "$FAKE_SLURM/code"
exit "$code"
'''
_SCONTROL = '''#!/bin/bash
case "$*" in
    'show hostnames first-machine,second-machine') printf 'localhost\\nsecond-machine\\n' ;;
    '--json show job '*) echo "{\\"job_state\\": [\\"$FAKE_STATE\\", \\"COMPLETING\\"]}" ;;
    *) echo "$*" >> "$FAKE_SLURM/requests" ;;
esac
'''


class Slurm:
    """Starts a job, and starts it again while it asks for that.

    Args:
        folder: Folder for the programs and for what the tasks print.
        num_tasks: Number of tasks of a step.
    """

    def __init__(self, folder: Path, num_tasks: int):
        self.folder = folder
        self.num_tasks = num_tasks
        self.job = free_port() - 20000  # the script adds that
        self.restarts = 0
        folder.mkdir()
        for name, program in (('srun', _SRUN), ('scontrol', _SCONTROL)):
            (folder / name).write_text(program)
            (folder / name).chmod(0o755)

    def start(
            self,
            flags: str,
            faults: Optional[Dict[int, Callable]] = None,
            code: Optional[int] = None,
            state: str = 'RUNNING',
    ) -> 'Try':
        """Run the script once.

        Args:
            flags: Options of the run, after those of a tiny run.
            faults: What is called in a task before the training script, by rank.
            code: Exit code of the step, which then runs nothing.
            state: State of the job after the step.
        """
        environ = {
            **os.environ, 'PATH': f'{self.folder}:{os.environ["PATH"]}', 'FAKE_SLURM': str(self.folder),
            'FAKE_STATE': state, 'SLURM_JOB_ID': str(self.job), 'SLURM_JOB_NODELIST': 'first-machine,second-machine',
            'SLURM_CPUS_PER_TASK': '1'}
        if self.restarts:
            environ['SLURM_RESTART_COUNT'] = str(self.restarts)
        script = subprocess.Popen(
            ['bash', str(SCRIPT), *shlex.split(flags)], env=environ, stdout=subprocess.PIPE, text=True)
        words = self._wait_for(self.folder / 'step').read_text().splitlines()
        (self.folder / 'step').unlink()
        outcome = Try(script, words)
        if code is None:
            outcome.tasks = [self._start_task(rank, words, (faults or {}).get(rank)) for rank in range(self.num_tasks)]
            outcome.codes = [task.wait() for task in outcome.tasks]
            # srun ends with the highest exit code of its tasks; that of a task killed by signal N is 128 + N
            code = max(value if value >= 0 else 128 - value for value in outcome.codes)
        (self.folder / 'code').write_text(str(code))
        outcome.output = script.communicate(timeout=TIMEOUT)[0]
        requests = self.folder / 'requests'
        outcome.requeued = requests.exists()
        if outcome.requeued:
            assert requests.read_text() == f'requeue {self.job}\n'
            requests.unlink()
            self.restarts += 1
        return outcome

    def _start_task(self, rank: int, words: List[str], fault: Optional[Callable]) -> ChildRun:
        address, port, *command = words
        arguments = command[command.index(_PROGRAM[-1]) + 1:]
        return ChildRun(
            shlex.join(arguments), self.folder / f'rank{rank}.log', fault, MASTER_ADDR=address, MASTER_PORT=port,
            SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank % 2), SLURM_NTASKS=str(self.num_tasks))

    @staticmethod
    def _wait_for(path: Path) -> Path:
        end = time.monotonic() + TIMEOUT
        while not path.exists():
            assert time.monotonic() < end, f'no {path.name}'
            time.sleep(0.02)
        return path


class Try:
    """A try of a job.

    Attributes:
        words: Address and port of rank 0, and the arguments of srun.
        tasks: Processes of the step.
        codes: Their exit codes, negative if a signal killed one.
        code: Exit code of the script.
        output: What the script printed.
        requeued: The script asked for another try.
    """

    def __init__(self, script: subprocess.Popen, words: List[str]):
        self._script = script
        self.words = words
        self.tasks: List[ChildRun] = []
        self.codes: List[int] = []
        self.output = ''
        self.requeued = False

    @property
    def code(self) -> int:
        return self._script.returncode
