"""Measure what a training step of the methods that predict features costs, beside MAE and the model on whole images.

    python -m benchmarks.latent

Steps and columns are those of `python -m benchmarks.masked`. Methods have the sizes of their papers.
"""
import argparse
from typing import Any, Dict

import torch

import timm
from timm.mim import create_mim

from .masked import HEADER, Dense, Method, measure
from .training import TrainingStep

METHODS = {
    'MAE': dict(method='mae'),
    'I-JEPA': dict(method='ijepa'),
    'CAPI': dict(method='capi'),
    'data2vec, 16 masks for each image': dict(method='data2vec'),
    'data2vec, 4 masks': dict(method='data2vec', clone_batch=4),
    'data2vec, 1 mask': dict(method='data2vec', clone_batch=1),
    'data2vec, all tokens': dict(method='data2vec', drop_tokens=False),
}


def steps_of(name: str, batch_size: int, methods: Dict[str, Dict[str, Any]]) -> Dict[str, TrainingStep]:
    """Return the steps to compare by name, the one of the model on whole images first."""
    torch.manual_seed(0)
    dense = Dense(timm.create_model(name, num_classes=0))
    steps = {}
    for label, options in methods.items():
        method = create_mim(backbone=timm.create_model(name, num_classes=0), **options)
        images, noise = torch.randn(batch_size, 3, *method.img_size), torch.rand(method.noise_shape(batch_size))
        steps.setdefault('dense', TrainingStep(dense.train(), (images,), 'float32', False))
        steps[label] = TrainingStep(Method(method).train(), (images, noise), 'float32', False)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.latent', description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='vit_small_patch16_224')
    parser.add_argument('--batch-size', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    print(HEADER)
    for line in measure(args.model, steps_of(args.model, args.batch_size, METHODS), args.rounds, torch.device('cpu')):
        print(line)


if __name__ == '__main__':
    main()
