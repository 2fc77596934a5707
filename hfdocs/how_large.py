"""Writes the page of costs, `python hfdocs/how_large.py` with timm installed. It takes some minutes."""
from argparse import Namespace
from pathlib import Path
from typing import Iterator, List

from timm.mim.pretrain.options import resolve_options
from timm.mim.pretrain.plan import ACCELERATORS, UTILISATION, largest_batch, measure_step, memory_of_process

PAGE = Path(__file__).with_name('source') / 'how_large.mdx'
IMAGES = 1_281_167  # of ImageNet-1k
BATCH = 32
RUNS = [  # method, model, epochs of the paper
    ('mae', 'vit_base_patch16_224', 800),
    ('mae', 'vit_large_patch16_224', 800),
    ('mae', 'vit_huge_patch14_224', 800),
    ('mae', 'vit_7b_patch16_dinov3', 800),
    ('simmim', 'swin_base_patch4_window7_224', 100),
    ('ijepa', 'vit_huge_patch14_224', 300),
    ('spark', 'convnext_large', 1600),
]
HEAD = f"""\
# How Large Can I Go

`--plan PROCESSES` prints what a run costs, and ends without training. It builds the model without weights and runs \
one update on tensors that have shapes but no values, so that a plan for a model of seven billion parameters needs a \
laptop and a minute:

```bash
python train.py --mim mae --model vit_large_patch16_224 --batch-size 128 --amp --plan 8
```

What is measured: parameters, operations, and the memory of weights, gradients, state of the optimizer, moving \
average and activations at the peak of an update. The test suite compares the memory with the profile of real \
updates on the CPU, and the two differ by less than 2 %; for convolutions of ResNets the CPU needs up to 12 % more, \
in work space that a plan does not see. No plan was compared with a GPU.

What is computed: shares of a process with `--fsdp`, buckets of gradients between processes, images per second and \
days at {UTILISATION:.0%} of the peak operations that the data sheet of a device states, and the cores that the \
loader needs.

The table is for images of 224 x 224 pixels and bfloat16 (`--amp`), {BATCH} images per process, on H100 devices with \
80 GB. "Fit" is the number of images per process that fit, on one device and with `--fsdp` on eight and on 256. Days \
are those of the epochs of the paper on ImageNet-1k.

"""
HEADER = [
    'Method', 'Model', 'Parameters of the encoder, and others (million)', 'GFLOPs of an update and image',
    f'GB for {BATCH} images', 'Fit: 1, 8, 256 devices', 'Epochs', 'Days: 1, 8, 256 devices',
]


def row(method: str, model: str, epochs: int) -> List[str]:
    """Return the row of a run."""
    options, _ = resolve_options(
        Namespace(mim=method, model=model, batch_size=BATCH, amp=True, device='cpu', img_size=224))
    cost = measure_step(options, (128, 1024))
    gigabytes, peak, _ = ACCELERATORS['H100 80 GB']
    memory = sum(memory_of_process(cost, cost.memory[BATCH], 1, sharded=False).values())
    fit, days = [], []
    for devices in (1, 8, 256):
        options.fsdp = devices > 1
        fit.append(str(largest_batch(options, cost, gigabytes, devices) or 'none'))
        days.append(f'{IMAGES * epochs * cost.step / (devices * peak * 1e12 * UTILISATION) / 86400:,.1f}')
    return [
        f'`{method}`', f'`{model}`', ', '.join(f'{n / 1e6:,.0f}' for n in cost.parameters.values()),
        f'{cost.step / 1e9:,.0f}', f'{memory / 1e9:.0f}', ', '.join(fit), str(epochs), ', '.join(days)]


def lines() -> Iterator[str]:
    for cells in (HEADER, ['---', '---', *['---:'] * 6], *(row(*run) for run in RUNS)):
        yield f'| {" | ".join(cells)} |'


if __name__ == '__main__':
    PAGE.write_text(HEAD + '\n'.join(lines()) + '\n')
