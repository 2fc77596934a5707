"""Run jobs in slices of a few minutes. A file records finished jobs, so that the next slice continues after them."""
import json
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence

import torch

STARTED = 'started'
ATTEMPTS = 2  # for a job that kills its process, or does not finish before the machine is taken away
SHORTEST = 20.  # seconds that must remain to start the first job of a section


class Unfit(Exception):
    """Raised by a job that cannot run on this machine, for lack of memory or of a package."""


class Job(NamedTuple):
    """A check or measurement.

    Attributes:
        section: Section of the report.
        name: Name of the job, unique in its section.
        run: Function that runs the job and returns measurements by name. Raises `Unfit` if this machine cannot run it.
    """
    section: str
    name: str
    run: Callable[[], Dict[str, Any]]


class Results:
    """Results of jobs, in a file with one JSON line when a job starts, and another when it ends."""

    def __init__(self, file: Path):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text() if file.exists() else ''
        whole, _, half = text.rpartition('\n')
        self.records = [json.loads(line) for line in whole.splitlines()]
        if half:  # a process was killed while it wrote this line
            file.write_text(whole + '\n' if whole else '')

    def add(self, job: Job, outcome: str, **measured) -> None:
        self.records.append(dict(section=job.section, job=job.name, outcome=outcome, **measured))
        with open(self.file, 'a') as file:
            file.write(json.dumps(self.records[-1]) + '\n')

    def ended(self) -> List[Dict[str, Any]]:
        """Return the last record of each finished job."""
        last = {(record['section'], record['job']): record for record in self.records if record['outcome'] != STARTED}
        return list(last.values())

    def pending(self, jobs: Sequence[Job]) -> List[Job]:
        """Return the unfinished jobs; those that were started before come last. Fail jobs without attempts left."""
        done = {(record['section'], record['job']) for record in self.ended()}
        starts = Counter((record['section'], record['job']) for record in self.records if record['outcome'] == STARTED)
        left = [job for job in jobs if job[:2] not in done]
        for job in left:
            if starts[job[:2]] >= ATTEMPTS:
                self.add(job, 'failed', problem=f'did not end in {ATTEMPTS} attempts')
        return sorted((job for job in left if starts[job[:2]] < ATTEMPTS), key=lambda job: starts[job[:2]])

    def longest(self, section: str) -> float:
        """Return the seconds that the longest job of a section took."""
        seconds = [record['seconds'] for record in self.records if record['section'] == section and 'seconds' in record]
        return max(seconds, default=SHORTEST)


def run_slice(jobs: Sequence[Job], results: Results, minutes: float, device: torch.device) -> int:
    """Run jobs in their order until the time is used up, or the next job could take longer than the remaining time.

    Args:
        jobs: All jobs, including finished ones.
        results: Results so far. New results are added.
        minutes: Duration of this slice in minutes.
        device: Device, which is checked after a failed job.

    Returns:
        Number of jobs that remain.
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
            torch.cuda.synchronize()  # raises after a sticky error, which would fail all following jobs in this process
    return 0


def attempt(job: Job) -> tuple:
    """Run a job, and return its outcome with its measurements or its problem."""
    try:
        return 'passed', job.run()
    except Unfit as error:
        return 'skipped', dict(problem=str(error))
    except ImportError as error:
        return 'skipped', dict(problem=f'not installed here: {error}')
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return 'skipped', dict(problem=f'does not fit: {first_line(error)}')
    except Exception as error:  # record the failure and continue with the other jobs
        traceback.print_exc()
        return 'failed', dict(problem=f'{type(error).__name__}: {first_line(error)}')


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [''])[0][:300]


def describe(measured: Dict[str, Any]) -> str:
    return ', '.join(f'{key} {value:.4g}' if isinstance(value, float) else f'{key} {value}'
                     for key, value in measured.items())
