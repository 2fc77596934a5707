"""Jobs that are done in slices of some minutes. A file tells which are done, so that the next slice goes on."""
import json
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import torch

STARTED = 'started'
ATTEMPTS = 2  # of a job that takes the process down, or does not end before the machine is gone
SHORTEST = 20.  # seconds that must be left to start a job of a section that nothing is known of


class Unfit(Exception):
    """A job that cannot be done on this machine: no memory, a package that is missing."""


class Job(NamedTuple):
    """
    Attributes:
        section: Section of the report.
        name: Name of the job, unique in its section.
        run: Does the job, and returns what was measured by name. Raises `Unfit` where this machine cannot do it.
    """
    section: str
    name: str
    run: Callable[[], Dict[str, Any]]


class Results:
    """Results of jobs, a JSON line each, written when a job starts and again when it ends."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text().splitlines() if file.exists() else []
        self.records = [json.loads(line) for line in lines if line.endswith('}')]  # a killed process writes half a line

    def add(self, job: Job, outcome: str, **measured) -> None:
        self.records.append(dict(section=job.section, job=job.name, outcome=outcome, **measured))
        with open(self.file, 'a') as file:
            file.write(json.dumps(self.records[-1]) + '\n')

    def ended(self) -> List[Dict[str, Any]]:
        """The last record of each job that ended."""
        last = {(record['section'], record['job']): record for record in self.records if record['outcome'] != STARTED}
        return list(last.values())

    def pending(self, jobs: Sequence[Job]) -> List[Job]:
        """Jobs to do, those last that were started before and did not end. They get another attempt."""
        done = {(record['section'], record['job']) for record in self.ended()}
        starts = Counter((record['section'], record['job']) for record in self.records if record['outcome'] == STARTED)
        left = [job for job in jobs if job[:2] not in done]
        for job in left:
            if starts[job[:2]] >= ATTEMPTS:
                self.add(job, 'failed', problem=f'did not end in {ATTEMPTS} attempts')
        return sorted((job for job in left if starts[job[:2]] < ATTEMPTS), key=lambda job: starts[job[:2]])

    def longest(self, section: str) -> float:
        """Seconds that the longest job of a section took."""
        seconds = [record['seconds'] for record in self.records if record['section'] == section and 'seconds' in record]
        return max(seconds, default=SHORTEST)


def run_slice(jobs: Sequence[Job], results: Results, minutes: float, device: torch.device) -> int:
    """Run jobs in their order until the time is used up. A job that could take longer than what is left waits.

    Args:
        jobs: All jobs, done ones too.
        results: Results so far, which are added to.
        minutes: Minutes of this slice.
        device: Device, which has to answer after a job that failed.

    Returns:
        Number of jobs that are left.
    """
    end = time.monotonic() + 60 * minutes
    pending = results.pending(jobs)
    for number, job in enumerate(pending):
        if time.monotonic() + results.longest(job.section) > end:
            return len(pending) - number
        results.add(job, STARTED)
        start = time.monotonic()
        outcome, measured = attempt(job)
        results.add(job, outcome, seconds=round(time.monotonic() - start, 2), **measured)
        print(f'{outcome:8} {job.section}: {job.name} {describe(measured)}', flush=True)
        if outcome == 'failed' and device.type == 'cuda':
            torch.cuda.synchronize()  # an error that stays would fail all that follow: end here, the next slice goes on
    return 0


def attempt(job: Job) -> tuple:
    """Outcome of a job, and what it measured or why it failed."""
    try:
        return 'passed', job.run()
    except Unfit as error:
        return 'skipped', dict(problem=str(error))
    except ImportError as error:
        return 'skipped', dict(problem=f'not installed here: {error}')
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return 'skipped', dict(problem=f'does not fit: {first_line(error)}')
    except Exception as error:  # a failure is a result, the other jobs are worth having
        traceback.print_exc()
        return 'failed', dict(problem=f'{type(error).__name__}: {first_line(error)}')


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [''])[0][:300]


def describe(measured: Dict[str, Any]) -> str:
    return ', '.join(f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
                     for key, value in measured.items())
