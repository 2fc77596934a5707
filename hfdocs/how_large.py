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
RESULTS = Path(__file__).parents[1] / 'benchmarks' / 'results' / 'plan.md'  # written by python -m benchmarks.plan
HEAD = f"""\
# How Large Can I Go

`--plan PROCESSES` prints what a run costs, and ends without training. It builds the model without weights and runs \
one update on tensors that have shapes but no values, so that a plan for a model of seven billion parameters needs a \
laptop and a minute:

```bash
python train.py --mim mae --model vit_large_patch16_224 --batch-size 128 --amp --plan 8
```

In short, for MAE in bfloat16 with 800 epochs of ImageNet-1k, computed as described below:

| | What fits | What it takes |
| --- | --- | --- |
| One laptop with 16 GB of memory | ViT-H/14 with 32 images per update (14 GB), without data in the same memory | \
Days on a GPU are weeks on a CPU: train small models, or stop after few epochs. `make pretrain` and \
`-c mae_sample_photographs` take minutes |
| One machine with eight H100 | ViT-7B with `--fsdp`, up to 105 images per process; ViT-H/14 also without | \
ViT-B 6 hours, ViT-L 13 hours, ViT-H 30 hours, ViT-7B 10 days. ViT-B needs 5.3 GB of JPEG files a second and 66 cores \
that decode them, ViT-7B 0.1 GB and 2 cores |
| 32 such machines | ViT-7B with up to 126 images per process. Weights, gradients and the state of AdamW of 7 billion \
parameters take 0.4 GB of each device | ViT-7B 7 hours; ViT-B less than an hour, if 171 GB a second can be read. \
Each of the 256 processes writes 0.3 GB of a checkpoint of 81 GB of ViT-7B, see \
[checkpoints of large models](./pretraining#checkpoints-of-large-models) |

## Computed

Computed are parameters, operations, and the memory of weights, gradients, state of the optimizer, moving average and \
activations at the peak of an update, from an update without values; from these, shares of a process with `--fsdp`, \
buckets of gradients between processes, images per second and days at {UTILISATION:.0%} of the peak operations that \
the data sheet of a device states, and the cores that the loader needs. No plan was compared with a GPU.

The table is for images of 224 x 224 pixels and bfloat16 (`--amp`), {BATCH} images per process, on H100 devices with \
80 GB. "Fit" is the number of images per process that fit, on one device and with `--fsdp` on eight and on 256. Days \
are those of the epochs of the paper on ImageNet-1k.

"""
TAIL = """
## Measured

The memory of real updates on the CPU, beside what `--plan` states for them. "Kept" is what lives between updates: \
weights and the state of the optimizer. "Update" is the most that an update allocates beyond that: gradients, \
activations and work space of operators. Both in GB of 1e9 bytes, the measured ones from PyTorch's \
profiler, on one thread:

```bash
python -m benchmarks.plan
```

"""
NOTE = """
The library that computes convolutions on a CPU takes work space that a plan does not see, 7 % of the update of the \
ResNet here and up to 12 % in others. The test suite holds the memory of six small runs to 2 %, and the operations of \
an update to the count of PyTorch.

How long a run stands still while it saves was measured for \
[checkpoints of large models](./pretraining#checkpoints-of-large-models).
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
    PAGE.write_text(HEAD + '\n'.join(lines()) + '\n' + TAIL + RESULTS.read_text() + NOTE)
