"""Run the checks and measurements that need a GPU, in time slices; each slice continues where the last one stopped.

The order is: Proof 3 (results equal to stock timm's, bit for bit) for the smallest model of each class; steps in
float16 and bfloat16 with the guard against infinite or NaN losses; compilation to one graph; steps that do not wait for
the device; throughput compared with transformers, lightly and the reference algorithms; the loader; Proof 3 for all
other models, smallest first.

Results are appended to RESULTS/results.jsonl, and summarised in RESULTS/table.md. Finished jobs are not repeated.
Without a GPU, `--device cpu` runs the same code on tiny models in a minute.

On your own machine: make cuda ARGS='--minutes 60'.

On a machine without network that gets a copy of the working tree and limits the time of a command: carry the wheel of
stock timm (build/upstream) and the results so far (output/cuda), and copy the results back. With the device tool:

    run(carry=['build/upstream', 'output/cuda', '.whl'], timeout_s=590, command='''
        python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl &&
        export PYTHONPATH=build:/tmp/site PYTHONUNBUFFERED=1 &&
        python3 -m patchset build && mkdir -p output/cuda &&
        python3 -m benchmarks.gpu --minutes 8.5; cp output/cuda/* $OUT/''')
    cp FILES_AT/* output/cuda/     # here, then the same call again until nothing is left

`.whl` contains packages of peers that the machine lacks: `pip download --no-deps -d .whl 'lightly>=1.6,<1.7'
'lightly_utils>=0.0.2'`. Without it (omit the first line), the jobs that need lightly are reported as skipped.
"""
import argparse
import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import List

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # deterministic cuBLAS, for Proof 3; read when it starts
os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # silence the profiler that measures memory

import torch  # noqa: E402

from ..report import describe_machine  # noqa: E402
from .slices import Job, Results, run_slice  # noqa: E402
from .table import to_markdown  # noqa: E402

SECTIONS = ('proof 3', 'mixed precision', 'one graph', 'no host sync', 'throughput', 'loader')
ROOT = Path(__file__).resolve().parents[2]


def all_jobs(device: torch.device) -> List[Job]:
    from . import loader, proof, throughput, training_steps
    proofs = proof.jobs(device.type)
    return [*proofs['smallest'], *training_steps.jobs(device), *throughput.jobs(device), *loader.jobs(device),
            *proofs['others']]


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.gpu', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--minutes', type=float, default=9., help='duration of this slice in minutes (default: 9)')
    add('--results', type=Path, default=ROOT / 'output' / 'cuda', help='folder of the results (default: output/cuda)')
    add('--device', choices=('cuda', 'cpu'), default='cuda', help='cpu runs tiny models as a test (default: cuda)')
    add('--only', nargs='+', choices=SECTIONS, default=SECTIONS, metavar='SECTION',
        help=f'sections to run: {", ".join(SECTIONS)} (default: all)')
    add('--table', action='store_true', help='only print the table of the results')
    return parser


def main(arguments: List[str] = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 if a job failed, 2 for a user's mistake."""
    args = create_parser().parse_args(arguments)
    if args.device == 'cuda' and not torch.cuda.is_available() and not args.table:
        print('python -m benchmarks.gpu: no CUDA device found; --device cpu runs tiny models', file=sys.stderr)
        return 2
    warnings.filterwarnings('ignore')
    device = torch.device(args.device)
    results = Results(args.results / 'results.jsonl')
    if args.table:
        print((args.results / 'table.md').read_text() if (args.results / 'table.md').exists() else 'no results yet')
        return 0
    jobs = [job for job in all_jobs(device) if job.section in args.only]
    try:
        left = run_slice(jobs, results, args.minutes, device)
    finally:
        sections = Counter(job.section for job in results.pending(jobs))
        (args.results / 'table.md').write_text(to_markdown(describe_machine(device), results.ended(), sections))
    failed = [record for record in results.ended() if record['outcome'] == 'failed']
    print(f'{left} jobs are left, {len(failed)} failed: {args.results / "table.md"}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
