"""Compare the memory that `--plan` states with that of real updates: python -m benchmarks.plan

Each case runs two updates on the CPU. The profile of the second one gives the memory that it allocates beyond what
lives between updates: gradients, activations, and work space of the operators. Results: results/plan.json and plan.md.
"""
import argparse
import json
import os
import platform
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # silence the profiler that measures memory

import torch  # noqa: E402

from timm.mim.pretrain.flags.run_options import RunOptions  # noqa: E402
from timm.mim.pretrain.options import resolve_options  # noqa: E402
from timm.mim.pretrain.plan import ACTIVATIONS, GRADIENTS, OPTIMIZER, WEIGHTS, measure_step  # noqa: E402
from timm.mim.pretrain.task import autocast_of, create_method, create_optimizer, state_tensors  # noqa: E402

from .timing import peak_memory  # noqa: E402

CPU = torch.device('cpu')
RESULTS = Path(__file__).resolve().parent / 'results'
CASES = (
    dict(mim='mae', model='vit_base_patch16_224', img_size=224, batch_size=4),
    dict(mim='mae', model='vit_small_patch16_224', img_size=224, batch_size=16, amp=True),
    dict(mim='mae', model='vit_large_patch16_224', img_size=160, batch_size=2, grad_checkpointing=True),
    dict(mim='simmim', model='vit_small_patch16_224', img_size=192, batch_size=4, amp=True, grad_accum_steps=2),
    dict(mim='simmim', model='swin_base_patch4_window7_224', img_size=224, batch_size=2),
    dict(mim='ijepa', model='vit_base_patch16_224', img_size=224, batch_size=2),
    dict(mim='spark', model='convnext_base', img_size=160, batch_size=2),
    dict(mim='spark', model='resnet50', img_size=160, batch_size=4),
)


def resolve(**given: Any) -> RunOptions:
    """Return the options of a run on the CPU."""
    return resolve_options(Namespace(device='cpu', **given))[0]


def measure(options: RunOptions) -> Dict[str, float]:
    """Return the bytes of a real update: `kept` lives between updates, `update` is the peak of the second one beyond.
    """
    method, _ = create_method(options)
    optimizer = create_optimizer(method.train(), options, 1e-3, CPU)
    images, autocast = torch.randn(options.batch_size, 3, *method.img_size), autocast_of(options, CPU)

    def update() -> None:
        for _ in range(options.grad_accum_steps):
            with autocast():
                loss = method(images, noise=torch.rand(method.noise_shape(len(images)))).loss
            loss.backward()
            del loss
        optimizer.step()
        optimizer.zero_grad()

    update()
    peak = peak_memory(update, CPU) * 2 ** 20
    kept = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers(), *state_tensors(optimizer)))
    return dict(kept=kept, update=peak)


def plan(options: RunOptions) -> Dict[str, float]:
    """Return the same bytes as `--plan` states them."""
    memory = measure_step(options).memory[options.batch_size]
    height, width = options.img_size
    images = options.batch_size * 3 * height * width * 4  # the profiler starts when they exist
    return dict(
        kept=memory[WEIGHTS] + memory[OPTIMIZER], update=memory[GRADIENTS] + memory[ACTIVATIONS] - images)


def compare(given: Dict[str, Any]) -> Dict[str, Any]:
    options = resolve(**given)
    planned, measured = plan(options), measure(options)
    return dict(
        given, planned=planned, measured=measured, update_ratio=planned['update'] / measured['update'],
        ratio=sum(planned.values()) / sum(measured.values()))


def to_markdown(rows: List[Dict[str, Any]]) -> str:
    """Return the rows as a table, in GB of 1e9 bytes."""
    lines = [
        '| Method | Model | Run | Planned: kept + update | Measured: kept + update | Planned divided by measured |',
        '| --- | --- | --- | ---: | ---: | ---: |',
    ]
    for row in rows:
        more = [name for name, text in (
            ('bfloat16', 'amp'), ('checkpointing', 'grad_checkpointing')) if row.get(text)]
        if row.get('grad_accum_steps'):
            more.append(f'{row["grad_accum_steps"]} batches per update')
        run = ', '.join([f'{row["batch_size"]} x {row["img_size"]} px', *more])
        sizes = [' + '.join(f'{row[kind][part] / 1e9:.3f}' for part in ('kept', 'update'))
                 for kind in ('planned', 'measured')]
        lines.append(
            f'| `{row["mim"]}` | `{row["model"]}` | {run} | {sizes[0]} | {sizes[1]} | {row["ratio"]:.3f} |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.plan', description=__doc__)
    parser.add_argument('--output', type=Path, default=RESULTS, help=f'folder of the results (default: {RESULTS})')
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in CASES:
        rows.append(compare(case))
        print(to_markdown(rows[-1:]).splitlines()[-1], f'update alone {rows[-1]["update_ratio"]:.3f}', flush=True)
        machine = dict(torch=torch.__version__, system=platform.platform(), threads=torch.get_num_threads())
        (args.output / 'plan.json').write_text(json.dumps(dict(machine=machine, rows=rows), indent=1) + '\n')
        (args.output / 'plan.md').write_text(to_markdown(rows))


if __name__ == '__main__':
    main()
