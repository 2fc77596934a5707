"""Compute what a run costs before it starts: parameters, operations, memory, images per second and days.

One update runs on fake tensors, which have shapes but no values, so that a plan for a model of billions of parameters
takes seconds and no memory. The plan counts every tensor that the update allocates, as the run would.
"""
import dataclasses
import weakref
from collections import Counter
from typing import Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from .blocks import repeated_blocks
from .errors import UserError, one_line
from .flags.run_options import RunOptions
from .task import autocast_of, create_method, create_optimizer, state_tensors

# Dense tensor operations per second, in 1e12: data sheets of NVIDIA for bfloat16, and for float32 as TF32
ACCELERATORS = {
    'A100 80 GB': (80, 312, 156),
    'H100 80 GB': (80, 989, 495),
    'H200 141 GB': (141, 989, 495),
}
UTILISATION = 0.35  # assumed share of these operations that a run reaches
IMAGE_BYTES = 110_000  # mean size of an ImageNet JPEG file
IMAGES_PER_CORE = 632  # JPEG files of 500 x 375 pixels that one core loads in a second: benchmarks/loading.py
_LARGER_BATCHES = (128, 1024)  # whose memory is measured, too, to find the largest one that fits
_FREE_SHARE = 0.92  # share of the memory that a run can use: the rest goes to the driver and to fragmentation

WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGE, ACTIVATIONS = 'weights', 'gradients', 'optimizer', 'average', 'activations'


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the live tensors by kind, and remembers the counts at the peak.

    Attributes:
        live: Bytes of the live tensors by kind.
        peak: The same when their sum was largest.
    """

    def __init__(self):
        super().__init__()
        self.live: Counter = Counter()
        self.peak: Counter = Counter()
        self._kinds: Dict[int, str] = {}  # by the address of the storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result

    def add(self, tensor: torch.Tensor, kind: str = ACTIVATIONS) -> None:
        """Count the storage of a tensor until it is freed. A storage is counted once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._kinds:
            return
        self._kinds[key] = kind
        size = storage.nbytes()
        self.live[kind] += size
        weakref.finalize(storage, self._remove, key, size)
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = self.live.copy()

    def move(self, tensor: torch.Tensor, kind: str) -> None:
        """Count the storage of a tensor as another kind from now on."""
        storage = tensor.untyped_storage()
        self.add(tensor)
        self.live[self._kinds[storage._cdata]] -= storage.nbytes()
        self.live[kind] += storage.nbytes()
        self._kinds[storage._cdata] = kind

    def _remove(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size


class StepCost(NamedTuple):
    """Cost of an update in one process, before sharding.

    Attributes:
        parameters: Number of parameters by part: encoder, and all others.
        forward: Floating point operations of the forward pass of one image by part. A multiplication with an addition
            counts as two. If a method embeds the visible patches itself, the rest contains that.
        step: Floating point operations of forward and backward pass of one image.
        memory: Bytes at the peak by kind, for batches of several sizes. The first size is that of the run.
        largest_block: Bytes of the weights of the largest repeated block, which --fsdp gathers.
        trainable: Bytes of the weights that are trained.
    """
    parameters: Dict[str, int]
    forward: Dict[str, float]
    step: float
    memory: Dict[int, Dict[str, float]]
    largest_block: int
    trainable: int


def measure_step(options: RunOptions, larger_batches: Sequence[int] = ()) -> StepCost:
    """Run updates on fake tensors, and count their operations and their memory.

    Args:
        options: Options of the run.
        larger_batches: Further batch sizes to measure the memory of.

    Raises:
        UserError: The model or the method cannot be built, or its update cannot run without values.
    """
    device = torch.device('cpu')  # fake tensors of a GPU would need one
    options = dataclasses.replace(
        options, pretrained=False, pretrained_path=None, initial_checkpoint='', torchcompile=None)
    with torch.device('meta'):
        method, _ = create_method(options)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            method = method.to_empty(device=device).train()
            if options.channels_last:
                method = method.to(memory_format=torch.channels_last)
            update = _Update(method, options, device)
            # the counter of operations keeps tensors alive, so that the two need an update each
            forward, step = _count_operations(update)
            memory = {}
            for batch_size in (options.batch_size, *(size for size in larger_batches if size > options.batch_size)):
                update.make_images(batch_size)
                memory[batch_size] = _count_memory(update)
    except (NotImplementedError, RuntimeError) as e:
        raise UserError(f'--plan: an update of {options.mim} on {options.model} needs values: {one_line(e)}') from e
    blocks = [sum(map(_bytes, block.parameters())) for block in repeated_blocks(method)]
    trainable = sum(_bytes(parameter) for parameter in method.parameters() if parameter.requires_grad)
    return StepCost(_parameters_by_part(method), forward, step, memory, max(blocks, default=0), trainable)


class _Update:
    """An update of a method on fake images.

    Args:
        method: Method with fake parameters.
        options: Options of the run.
        device: Device of the parameters.
    """

    def __init__(self, method: nn.Module, options: RunOptions, device: torch.device):
        self.method = method
        self.options = options
        self.optimizer = create_optimizer(method, options, 1e-3, device)
        self.autocast = autocast_of(options, device)
        self.make_images(options.batch_size)

    def make_images(self, batch_size: int) -> None:
        self.images = torch.empty(batch_size, self.options.in_chans, *self.method.img_size)
        self.noise = torch.empty(self.method.noise_shape(batch_size))

    def loss(self) -> torch.Tensor:
        with self.autocast():
            return self.method(self.images, noise=self.noise).loss

    def run(self) -> None:
        for _ in range(min(2, self.options.grad_accum_steps)):  # gradients stay from the first batch on
            self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _count_operations(update: _Update) -> Tuple[Dict[str, float], float]:
    """Return the operations of the forward pass of an image by part, and those of forward and backward pass."""
    with FlopCounterMode(display=False, custom_mapping=_BACKWARD) as whole:
        with FlopCounterMode(display=False) as forward:
            loss = update.loss()
        loss.backward()
    update.optimizer.zero_grad()
    counts = {name: sum(found.values()) for name, found in forward.get_flop_counts().items()}
    inside = [name for name in counts if '.backbone.' in f'{name}.']
    # a method calls parts of the encoder, so that no entry may stand for all of it
    outermost = [name for name in inside if not any(name.startswith(f'{other}.') for other in inside)]
    num_images = update.options.batch_size
    encoder = sum(counts[name] for name in outermost) / num_images
    rest = forward.get_total_flops() / num_images - encoder
    return dict(encoder=encoder, rest=rest), whole.get_total_flops() / num_images


def _count_memory(update: _Update) -> Dict[str, float]:
    """Return the bytes at the peak of an update by kind."""
    memory, method = LiveMemory(), update.method
    for tensor in (*method.parameters(), *method.buffers()):
        memory.add(tensor, WEIGHTS)
        if update.options.model_ema:
            memory.live[AVERAGE] += _bytes(tensor)
    memory.add(update.images)
    for tensor in state_tensors(update.optimizer):
        memory.add(tensor, OPTIMIZER)
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p: memory.move(p.grad, GRADIENTS))
        for parameter in method.parameters() if parameter.requires_grad]
    with memory:
        for _ in range(2):  # the state of the optimizer exists from the second update on, whose peak counts
            memory.peak.clear()
            update.run()
            for tensor in state_tensors(update.optimizer):
                memory.move(tensor, OPTIMIZER)
    for hook in hooks:
        hook.remove()
    return {kind: float(memory.peak[kind]) for kind in (WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGE, ACTIVATIONS)}


def _convolution_backward(
        grad_shape, x_shape, w_shape, bias, stride, padding, dilation, transposed, output_padding, groups, output_mask,
        out_shape=None, **kwargs,
) -> int:
    """Count the backward pass of a convolution: as many operations as the forward pass for each of two gradients.

    The formula of PyTorch ignores groups in the gradient of the weight: for the depthwise convolutions of ConvNeXt it
    counts several hundred times too many.
    """
    forward = conv_flop_count(list(x_shape), list(w_shape), list(grad_shape), transposed=transposed)
    return forward * sum(output_mask[:2])


_BACKWARD = {torch.ops.aten.convolution_backward: _convolution_backward}


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _parameters_by_part(method: nn.Module) -> Dict[str, int]:
    """Return the number of parameters of the encoder, and of the rest: decoder, mask token, target encoder."""
    encoder = sum(p.numel() for p in method.backbone.parameters())
    return dict(encoder=encoder, rest=sum(p.numel() for p in method.parameters()) - encoder)


def memory_of_process(
        cost: StepCost,
        memory: Dict[str, float],
        num_processes: int,
        sharded: bool,
) -> Dict[str, float]:
    """Return the bytes of one process at the peak, by kind.

    With --fsdp each process holds its share of weights, gradients, optimizer state and average, and gathers two blocks
    at a time: the one that it computes, and the next one. Otherwise several processes exchange gradients through
    buckets, which have the size of all gradients.

    Args:
        cost: Cost of an update.
        memory: Bytes by kind without sharding, one of `cost.memory`.
        num_processes: Number of processes.
        sharded: The run has --fsdp.
    """
    if sharded:
        shares = {kind: value if kind == ACTIVATIONS else value / num_processes for kind, value in memory.items()}
        return {**shares, 'gathered blocks': 2. * cost.largest_block}
    return {**memory, **(dict(buckets=float(cost.trainable)) if num_processes > 1 else {})}


def largest_batch(options: RunOptions, cost: StepCost, gigabytes: float, num_processes: int) -> int:
    """Return a batch of a process that fits into a memory and is nearly the largest one, 0 if that of the run does not.

    Which moment of an update needs most memory changes with the batch, and each moment needs memory in proportion to
    the batch. The peak is therefore a convex function of the batch, and lies below a line between two measured points.

    Args:
        options: Options of the run.
        cost: Cost of an update, measured for batches of several sizes.
        gigabytes: Memory of a device in units of 1e9 bytes.
        num_processes: Number of processes.
    """
    available = gigabytes * 1e9 * _FREE_SHARE
    totals = {
        size: sum(memory_of_process(cost, memory, num_processes, options.fsdp).values())
        for size, memory in cost.memory.items()}
    sizes = sorted(totals)
    if totals[sizes[0]] > available or len(sizes) == 1:
        return 0 if totals[sizes[0]] > available else sizes[0]
    start = max(number for number, size in enumerate(sizes) if totals[size] <= available)
    start = min(start, len(sizes) - 2)  # beyond the last point, the line through the last two
    small, large = sizes[start:start + 2]
    slope = (totals[large] - totals[small]) / (large - small)
    return int(small + (available - totals[small]) / slope)


def plan(options: RunOptions, num_images: Optional[int]) -> str:
    """Return the text of `--plan`.

    Args:
        options: Options of the run, `options.plan` is the number of processes.
        num_images: Number of training images, None if it is not known.

    Raises:
        UserError: See `measure_step`.
    """
    cost = measure_step(options, _LARGER_BATCHES)
    return '\n'.join([*_describe(options, cost), *_describe_devices(options, cost, num_images)])


def _describe(options: RunOptions, cost: StepCost) -> Iterator[str]:
    precision = options.amp_dtype if options.amp else 'float32'
    images = f'{options.plan} processes x {options.batch_size} images x {options.grad_accum_steps} batches per update'
    yield f'Plan of {options.mim} on {options.model}: {images}, {precision}' + (', sharded' if options.fsdp else '')
    yield 'Parameters: ' + ', '.join(f'{name} {count / 1e6:,.1f} million' for name, count in cost.parameters.items())
    forward = ', '.join(f'{name} {value / 1e9:,.2f}' for name, value in cost.forward.items())
    yield f'Floating point operations of an image, in 1e9: forward {forward}; update {cost.step / 1e9:,.2f}'
    memory = memory_of_process(cost, cost.memory[options.batch_size], options.plan, options.fsdp)
    parts = ', '.join(f'{kind} {value / 1e9:.2f}' for kind, value in memory.items() if value)
    yield f'Memory of a process at the peak, in GB: {parts}; {sum(memory.values()) / 1e9:.2f} in all'


def _describe_devices(options: RunOptions, cost: StepCost, num_images: Optional[int]) -> Iterator[str]:
    yield (
        f'Computed, not measured: {UTILISATION:.0%} of the peak operations of a device, images of '
        f'{IMAGE_BYTES // 1000} kB, {IMAGES_PER_CORE} images per second and core')
    for name, (gigabytes, *peaks) in ACCELERATORS.items():
        rate = options.plan * peaks[0 if options.amp else 1] * 1e12 * UTILISATION / cost.step
        batch = largest_batch(options, cost, gigabytes, options.plan)
        line = f'  {options.plan} x {name}: {rate:,.0f} images/s'
        if num_images:
            repeats = options.epoch_repeats or 1
            line += f', {_duration(num_images * repeats * options.epochs / rate)}'
        line += f', which takes {rate * IMAGE_BYTES / 1e6:,.0f} MB/s and {rate / IMAGES_PER_CORE:,.0f} cores to load'
        yield line + (f'; {batch} images per process fit' if batch else '; this batch does not fit')


def _duration(seconds: float) -> str:
    days = seconds / 86400
    return f'{days:,.1f} days' if days >= 1 else f'{24 * days:.1f} hours' if days >= 1 / 24 else f'{seconds:,.0f} s'
