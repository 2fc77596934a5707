#!/usr/bin/env python3
"""Show how much SparK helps a small ResNet with few labels, on the digits of `examples/digits.py`.

    python examples/digits_resnet.py

The digits are enlarged to 32 x 32 pixels. SparK pre-trains a ResNet of 0.13 million parameters on 1,000 of them without
labels. The ResNet is then fine-tuned on a few labelled digits, and also trained from scratch with the same recipe. The
script reports the accuracy on 500 test digits for several seeds. No option was searched.
"""
import time
from typing import List

import torch
from digits import (
    LABELS_PER_CLASS,
    SCRATCH,
    accuracy,
    fine_tune,
    pretrain,
    read_digits,
    some_of_each_class,
    table,
)
from torch.nn import functional as F

from timm.mim.pretrain.flags import OneLineParser

# 16 cells of 8 x 8 pixels: a cell shows 2 x 2 pixels of a digit
MODEL = dict(
    model_name='resnet18', in_chans=1, stem_width=16, channels=(16, 32, 48, 64), layers=(1, 1, 1, 1), output_stride=8)
SPARK = dict(img_size=32, mask_ratio=0.6, mask_unit=8, decoder_dim=32)
SIMMIM = dict(img_size=32, mask_ratio=0.6, mask_unit=8)
PRETRAINING = dict(steps=240, batch_size=64, learning_rate=2e-3)
FINE_TUNING = dict(steps=200, batch_size=32, learning_rate=2e-3)
METHODS = dict(spark=SPARK, simmim=SIMMIM)


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Repeat each pixel 4 x 4 times."""
    return F.interpolate(images, scale_factor=4, mode='nearest')


def run(seed: int, start: str) -> List[float]:
    """Pre-train unless `start` is `SCRATCH`, fine-tune and test. Return the accuracy for each number of labels."""
    began = time.process_time()
    (images, labels), (test_images, test_labels) = read_digits('train'), read_digits('test')
    torch.manual_seed(seed)
    images, test_images = enlarged(images), enlarged(test_images)
    encoder = None
    if start != SCRATCH:
        encoder = pretrain(start, images, **PRETRAINING, model=MODEL, **METHODS[start])
    result = []
    for count in LABELS_PER_CLASS:
        few = some_of_each_class(labels, count, seed)
        torch.manual_seed(seed)
        model = fine_tune(encoder, images[few], labels[few], **FINE_TUNING, model=MODEL)
        result.append(accuracy(model, test_images, test_labels))
    figures = ' '.join(f'{value:.1f}' for value in result)
    print(f'seed {seed}, {start}: {figures}  ({time.process_time() - began:.0f} s of processor time)', flush=True)
    return result


def main() -> None:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, default=3, metavar='N', help='number of seeds, two or more (default: 3)')
    args = parser.parse_args()
    results = {start: [run(seed, start) for seed in range(args.seeds)] for start in (SCRATCH, *METHODS)}
    print(f'\nTest accuracy in percent, mean and standard deviation over {args.seeds} seeds:\n\n{table(results)}')


if __name__ == '__main__':
    main()
