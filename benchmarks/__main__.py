"""Run the benchmarks and write tables, numbers and a plot. For a GPU: python -m benchmarks.gpu."""
import argparse
import importlib
import inspect
import json
import os
import time
import traceback
import warnings
from pathlib import Path
from typing import Iterator, List, Tuple

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # silence the profiler that measures memory

import torch  # noqa: E402

SECTIONS = ('mae', 'simmim', 'ijepa', 'floor', 'refactor', 'masks', 'loading', 'scale')
RESULTS = Path(__file__).resolve().parent / 'results'


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('--only', nargs='+', choices=SECTIONS, default=SECTIONS, help='sections to run (default: all)')
    parser.add_argument('--rounds', type=int, default=20, help='rounds of each comparison (default: 20)')
    parser.add_argument('--no-compile', action='store_true', help='leave the compiled comparisons out')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--output', type=Path, default=RESULTS, help=f'folder of the results (default: {RESULTS})')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    args.output.mkdir(parents=True, exist_ok=True)
    rows, failed = [], []
    for rows, failed in run(args):
        write(rows, args)
    print(f'results in {args.output}')
    if failed:
        raise SystemExit(f'failed: {", ".join(failed)}')


def write(rows: List[dict], args: argparse.Namespace) -> None:
    """Write the results so far, so that they survive if a later section takes too long.

    Some sections alone go to files of their own, which do not replace those of a whole run.
    """
    from .plot import plot
    from .report import describe_machine, to_markdown
    machine = describe_machine(torch.device(args.device))
    some = () if set(args.only) == set(SECTIONS) else args.only
    path = args.output / '-'.join((torch.device(args.device).type, *some))
    path.with_suffix('.json').write_text(json.dumps(dict(machine=machine, rounds=args.rounds, rows=rows), indent=1))
    path.with_suffix('.md').write_text(to_markdown(machine, rows, args.rounds))
    if {'MAE', 'SimMIM', 'I-JEPA', 'scale'} <= {row['section'] for row in rows}:
        plot(rows, path.with_suffix('.png'))


def run(args: argparse.Namespace) -> Iterator[Tuple[List[dict], List[str]]]:
    """Run the sections. After each, yield all rows so far, and the names of the sections that failed."""
    device = torch.device(args.device)
    if device.type == 'cuda':
        torch.set_float32_matmul_precision('high')
    rows, failed = [], []
    for name in args.only:
        start = time.perf_counter()
        print(name, flush=True)
        module = importlib.import_module(f'.{name}', __package__)
        takes_compiled = 'compiled' in inspect.signature(module.run).parameters
        options = dict(compiled=not args.no_compile) if takes_compiled else {}
        try:
            rows += module.run(args.rounds, device, **options)
        except Exception:  # continue with the other sections
            traceback.print_exc()
            failed.append(name)
        torch._dynamo.reset()
        print(f'{name}: {time.perf_counter() - start:.0f} s', flush=True)
        yield rows, failed


if __name__ == '__main__':
    main()
