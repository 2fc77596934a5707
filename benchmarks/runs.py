"""Runs of `train.py` in processes of their own, for benchmarks that compare whole runs."""
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

ROOT = Path(__file__).resolve().parents[1]


def train(folder: Path, name: str, *flags: Any) -> Dict[str, Any]:
    """Run `train.py` in a process of its own, unless the run is complete already.

    Args:
        folder: Folder of the runs.
        name: Name of the run.
        flags: Flags of `train.py`.

    Returns:
        The content of `summary.json`, with the processor time on all cores as `processor_seconds`.
    """
    summary = folder / name / 'summary.json'
    if summary.exists():
        return json.loads(summary.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, 'train.py', '--output', str(folder), '--experiment', name, '--resume', 'auto',
        *map(str, flags)]
    with open(folder / f'{name}.log', 'w') as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{" ".join(command)} failed: see {folder / name}.log')
    found = json.loads(summary.read_text())
    found['processor_seconds'] = usage.ru_utime + usage.ru_stime
    summary.write_text(json.dumps(found, indent=1) + '\n')
    return found
