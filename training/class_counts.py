"""How often each class occurs in a dataset, as `class_weights.py` counts it."""
import argparse
import json
import logging
from itertools import islice
from typing import Any, Dict, Iterator, List, Optional

import torch

from timm.data import MultiLabelTarget, create_dataset
from timm.loss import CLASS_WEIGHT_METHODS, compute_class_weights
from timm.utils import setup_default_logging
from .datasets import check_source
from .definitions import flags
from .errors import UserError
from .shared_flags import add_shared

_logger = logging.getLogger(__name__)


def create_parser() -> argparse.ArgumentParser:
    """Create the parser of `class_weights.py`."""
    parser = flags.OneLineParser(
        description='Count the labels of a dataset.', formatter_class=flags.DefaultsFormatter)
    add_shared(
        parser,
        'data-dir', 'dataset', 'dataset-download', 'dataset-trust-remote-code', 'class-map', 'input-key',
        'target-key', 'target-format', 'task',
    )
    add = parser.add_argument
    add('--split', default='train', metavar='NAME', help='split to count')
    add('--num-classes', type=int, metavar='N', help='number of classes, as the dataset has it if absent')
    add('--max-samples', type=int, metavar='N', help='count the first so many images only')
    add('-o', '--output', default='', metavar='FILE', help='write the counts here, to standard output if absent')
    add('--method', choices=CLASS_WEIGHT_METHODS, help='show the weights that train.py would make of the counts')
    add('--power', type=float, default=1., metavar='X', help='exponent of neg_pos and inv_freq')
    add('--beta', type=float, default=0.999, metavar='X', help='beta of effective_num')
    add('--max-weight', type=float, metavar='X', help='largest weight')
    parser.set_defaults(dataset='')
    return parser


def main() -> None:
    """Count as the command line says."""
    setup_default_logging()
    parser = create_parser()
    args = parser.parse_args()
    try:
        check_source(args.dataset, args.data_dir)
        stats = count(args)
    except (UserError, ValueError) as e:
        parser.error(str(e))
    if args.method:
        _, weights = compute_class_weights(
            stats['pos_counts'], stats['num_samples'], args.method, args.power, args.beta, args.max_weight)
        _logger.info(f"{args.method}: {', '.join(f'{w:.4g}' for w in weights.tolist())}")
    text = json.dumps(stats, indent=2)
    if args.output:
        with open(args.output, 'w') as f:
            f.write(text)
    else:
        print(text)


def count(args: argparse.Namespace) -> Dict[str, Any]:
    """Count the labels of a split.

    Returns:
        Positives of each class, number of images, and names of the classes where the dataset knows them.

    Raises:
        ValueError: The number of classes is not known, or a label is outside of it.
    """
    dataset = create_dataset(
        args.dataset,
        root=args.data_dir,
        split=args.split,
        class_map=args.class_map,
        download=args.dataset_download,
        input_key=args.input_key,
        target_key=args.target_key,
        target_format=args.target_format,
        trust_remote_code=args.dataset_trust_remote_code,
    )
    reader = getattr(dataset, 'reader', dataset)
    numbers = getattr(reader, 'class_to_idx', None) or {}
    num_classes = args.num_classes or (len(numbers) if args.task == 'classification' else 0)
    if not num_classes:
        raise ValueError('--num-classes must say how many classes there are.')

    several = args.task == 'multilabel'
    encode = MultiLabelTarget(num_classes, dense=several and args.target_format == 'multihot')
    counts, num_samples = torch.zeros(num_classes, dtype=torch.float64), 0
    for target in islice(_targets(dataset, reader), args.max_samples):
        counts += encode(target if several else [int(target)]).double()
        num_samples += 1
    values = counts.tolist()
    return dict(
        num_samples=num_samples,
        pos_counts=[int(v) if v.is_integer() else v for v in values],
        class_names=_names(numbers, num_classes),
        dataset=args.dataset,
        split=args.split,
        task=args.task,
    )


def _names(numbers: Dict[str, int], num_classes: int) -> Optional[List[Optional[str]]]:
    names = {number: name for name, number in numbers.items()}
    return [names.get(i) for i in range(num_classes)] if names else None


def _targets(dataset: Any, reader: Any) -> Iterator[Any]:
    """Go through the labels of a dataset, without decoding images where its reader can."""
    if hasattr(reader, 'iter_targets'):
        yield from reader.iter_targets()
    elif isinstance(getattr(reader, 'targets', None), (list, tuple)):
        yield from reader.targets
    elif isinstance(getattr(reader, 'samples', None), (list, tuple)):
        yield from (sample[1] for sample in reader.samples)
    else:
        yield from (target for _, target in reader)
