"""Measure whether masked pixels reach the prediction of SimMIM, in two ways. Neither needs a download.

    python -m benchmarks.leak ratio                 # one model of each family
    python -m benchmarks.leak ratio vit_tiny_patch16_224 pvt_v2_b0
    python -m benchmarks.leak squares               # train on images that cannot be predicted

`ratio` prints R for models with random weights: the mean change of the prediction when only the masked pixels of an
image are replaced, divided by the mean change when all pixels are replaced. R is 0 for a blind model, which is a model
that cannot see masked pixels.

`squares` trains SimMIM on images of constant squares of 32 x 32 pixels, whose colours are independent draws from a
standard normal distribution. Visible squares contain no information about masked ones. The best prediction of a blind
model is therefore 0, for which the expected L1 is the mean of |x|, sqrt(2 / pi) = 0.798. A lower L1 means that the
model sees masked pixels.
"""
import argparse
import math
from typing import Dict, Iterator, List

import torch

import timm
from timm.mim import SimMIM, create_mim, list_mim_models, masked_count, random_mask, upsample_mask
from timm.mim.backbone import model_input, patch_stride
from timm.models import get_pretrained_cfg
from timm.models._registry import _model_to_module

SQUARE = 32


def smallest_of_each_family() -> Dict[str, str]:
    """Return the smallest model that SimMIM supports in each family, by family."""
    smallest = {}
    for name in list_mim_models('simmim'):
        with torch.device('meta'):
            model = timm.create_model(name, num_classes=0)
        pixels = math.prod(get_pretrained_cfg(name).input_size[1:])
        cost = sum(parameter.numel() for parameter in model.parameters()) * pixels
        family = _model_to_module[name]
        smallest[family] = min(smallest.get(family, (math.inf, '')), (cost, name))
    return {family: name for family, (_, name) in sorted(smallest.items())}


def create(name: str) -> SimMIM:
    """Create SimMIM on a model with random weights, at the image size of the model or a similar one."""
    errors = []
    _, (height, width) = model_input(timm.create_model(name, num_classes=0))
    for step in (1, 32, 64):
        size = (height // step * step, width // step * step)
        try:
            model = timm.create_model(**timm.models.resolve_model_input_args(name, {'img_size': size}, num_classes=0))
            return create_mim('simmim', model, img_size=size, mask_unit=patch_stride(model, size))
        except (AssertionError, RuntimeError, ValueError) as error:
            errors.append(error)
    raise errors[0]


def units_mask(method: SimMIM, batch_size: int) -> torch.Tensor:
    """Return masks of 60 % of units of about 32 pixels, as in the paper."""
    repeats = [
        min((repeat for repeat in range(1, size // stride + 1) if size % (repeat * stride) == 0),
            key=lambda repeat: abs(repeat * stride - SQUARE))
        for size, stride in zip(method.img_size, method.patch_stride)]
    units = [size // stride // repeat for size, stride, repeat in zip(method.img_size, method.patch_stride, repeats)]
    noise = torch.rand(batch_size, math.prod(units))
    return upsample_mask(random_mask(noise, masked_count(noise.shape[1], 0.6)).unflatten(1, units), tuple(repeats))


@torch.no_grad()
def leak_ratio(method: SimMIM) -> float:
    """Return R: the mean change of the prediction if masked pixels change, divided by that if all pixels change."""
    method.eval()
    images, others = (torch.randn(2, method.in_chans, *method.img_size) for _ in range(2))
    mask = units_mask(method, 2)
    prediction = method.reconstruct(images, mask)
    changed_masked = method.reconstruct(torch.where(method.pixel_mask(mask), others, images), mask)
    changed_all = method.reconstruct(others, mask)
    return ((changed_masked - prediction).abs().mean() / (changed_all - prediction).abs().mean()).item()


def print_ratios(names: List[str]) -> None:
    print('| family | model | R |\n|---|---|---:|')
    for name in names or smallest_of_each_family().values():
        torch.manual_seed(0)
        print(f'| {_model_to_module[name]} | {name} | {leak_ratio(create(name)):.4f} |', flush=True)


def squares(batch_size: int, size: int) -> torch.Tensor:
    """Return images (B, 3, size, size) of independent constant squares."""
    colours = torch.randn(batch_size, 3, size // SQUARE, size // SQUARE)
    return colours.repeat_interleave(SQUARE, 2).repeat_interleave(SQUARE, 3)


def train_on_squares(name: str, steps: int, batch_size: int, size: int, report: int) -> Iterator[str]:
    """Train, and report the mean L1 over every `report` steps. Each step uses new images."""
    torch.manual_seed(0)
    model = timm.create_model(**timm.models.resolve_model_input_args(name, {'img_size': size}, num_classes=0))
    method = SimMIM(model, img_size=size, mask_unit=SQUARE).train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for step in range(1, steps + 1):
        loss = method(squares(batch_size, size)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % report == 0 or step == steps:
            mean = sum(losses[-report:]) / len(losses[-report:])
            yield f'step {step}: L1 {mean:.3f}, blind models have {math.sqrt(2 / math.pi):.3f} at best'


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.leak', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    ratio = commands.add_parser('ratio', help='R of models with random weights')
    ratio.add_argument('models', nargs='*', help='names of models (default: the smallest of each family)')
    train = commands.add_parser('squares', help='train on images that cannot be predicted')
    train.add_argument('--model', default='mobilenetv3_small_050')
    train.add_argument('--steps', type=int, default=964)
    train.add_argument('--batch-size', type=int, default=32)
    train.add_argument('--img-size', type=int, default=128)
    args = parser.parse_args()
    if args.command == 'ratio':
        print_ratios(args.models)
    else:
        for line in train_on_squares(args.model, args.steps, args.batch_size, args.img_size, report=100):
            print(line, flush=True)


if __name__ == '__main__':
    main()
