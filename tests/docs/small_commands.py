"""What is appended to a documented command to make it small.

A later flag goes before an earlier one. Options such as `--model-kwargs` replace those before them, so that those of
the command are said again. Images are square where the command says nothing else.
"""
import runpy
from typing import Any, Dict, List, Optional, Sequence

from timm.mim.pretrain.__main__ import create_parser
from timm.mim.pretrain.flags.run_options import DEFAULTS
from timm.mim.pretrain.flags import parse

ON_CPU = ['--device', 'cpu', '--workers', '0']
# Fewer and narrower layers, by the start of a model's name
FEWER_LAYERS = {
    'naflexvit': dict(depth=2, embed_dim=192, num_heads=3),
    'beit': dict(depth=2, embed_dim=192, num_heads=3),
    'convnext': dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)),
    'resnet': dict(layers=(1, 1, 1, 1), channels=(16, 16, 16, 16)),
    'swin': dict(depths=(2, 1, 1, 1), embed_dim=32, num_heads=(1, 2, 4, 8)),
    'test_vit': {},
    'vit': dict(depth=2, embed_dim=192, num_heads=3),
}
DECODER_DEPTH = dict(mae='decoder_depth', ijepa='predictor_depth', capi='predictor_depth')


def appended(script: Sequence[str], experiment: str) -> List[str]:
    """Flags that make a command of `train.py` or `validate.py` small, none for others.

    Args:
        script: Words from the script's name on.
        experiment: Name of the run.
    """
    if list(script[:2]) == ['-m', 'timm.mim.pretrain']:
        args = {**DEFAULTS, **parse(create_parser(), list(script[2:]))[0]}
    elif script[0] == 'train.py':
        args = vars(runpy.run_path('train.py')['_parse_args'](list(script[1:]))[0])
    else:
        args = None
    if args is not None:
        batch_size = '64' if args.get('dataset') == 'samples/digits' else '2'  # there are 1,285 of them
        return [*ON_CPU, '--batch-size', batch_size, '--validation-batch-size', '16', '--stop-epoch', '1',
                '--experiment', experiment, *_shorter_run(args), *_smaller_model(args)]
    if script[0] == 'validate.py':
        model = value_of(script, '--model')
        small = [*_fewer_pixels(model), *_fewer_layers(model)] if model else []  # otherwise that of the checkpoint
        return [*ON_CPU, '--batch-size', '16', *small]
    return []


def value_of(words: Sequence[str], flag: str) -> str:
    """The word after a flag, '' where there is no such flag."""
    return words[list(words).index(flag) + 1] if flag in words else ''


def _shorter_run(args: Dict[str, Any]) -> List[str]:
    shorter = dict(epoch_repeats=1, grad_accum_steps=2)
    return [
        word for name, value in shorter.items() if (args.get(name) or 0) > value
        for word in ('--' + name.replace('_', '-'), str(value))]


def _smaller_model(args: Dict[str, Any]) -> List[str]:
    # the targets of I-JEPA need a grid that leaves a context
    patch = (args.get('model_kwargs') or {}).get('patch_size')
    model = args['model'] if patch is None else f'{args["model"]}_patch{patch}'
    flags = _fewer_pixels(model, args.get('img_size'), more=args.get('mim') == 'ijepa')
    if args.get('mim') == 'mae' and args.get('mask_unit'):
        flags += ['--mask-unit', '32']  # several of them in a small image
    if args.get('naflex_loader'):
        flags = ['--naflex-train-seq-lens', '16', '24', '--naflex-max-seq-len', '20']
    if not args.get('pretrained') or args.get('pretrained_path'):  # published weights are of a whole model
        flags += _fewer_layers(args['model'], args.get('model_kwargs'))
    depth = DECODER_DEPTH.get(args.get('mim'))
    smaller = {depth: 2} if depth else dict(decoder_dim=32) if args.get('mim') in ('spark', 'fcmae') else {}
    if args.get('mim') == 'data2vec':
        smaller = dict(clone_batch=2, decoder_layers=1, average_top_k_layers=2)
    if args.get('mim') == 'capi':
        smaller['num_clusters'] = 16
    return flags + (_key_values('--mim-kwargs', {**args.get('mim_kwargs', {}), **smaller}) if smaller else [])


def _fewer_pixels(model: str, img_size: Optional[Sequence[int]] = None, more: bool = False) -> List[str]:
    side = 56 if 'patch14' in model else 96 if 'swin_base' in model else 64
    side = side * 3 // 2 if more else side
    shape = img_size if isinstance(img_size, (list, tuple)) else [1]
    return ['--img-size', *(str(side * size // min(shape)) for size in shape)]


def _fewer_layers(model: str, given: Optional[Dict[str, Any]] = None) -> List[str]:
    fewer = next(kwargs for start, kwargs in FEWER_LAYERS.items() if model.startswith(start))
    return _key_values('--model-kwargs', {**(given or {}), **fewer})


def _key_values(flag: str, values: Dict[str, Any]) -> List[str]:
    return [flag, *(f'{name}={value}' for name, value in values.items())]
