"""Losses and gradients of a method that is sharded over four processes in several ways."""
from functools import partial
from typing import Dict, List

import torch
import torch.distributed as dist
from torch._dynamo.utils import counters as dynamo_counters
from torch.distributed.tensor import DTensor

from timm.mim import create_mim
from timm.mim.pretrain.blocks import checkpoint_blocks, compile_blocks, repeated_blocks
from timm.mim.pretrain.sharding import gradients_unreduced, shard, whole

WORLD_SIZE = 4
BATCHES = 2  # of an update

SMALL = dict(
    mae=dict(decoder_depth=2, decoder_dim=48, decoder_heads=2),
    ijepa=dict(predictor_depth=2, predictor_dim=48, num_targets=2),
    simmim=dict(mask_unit=16),
)

def recompute(method) -> None:
    checkpoint_blocks(method, 2)


def recompute_all(method) -> None:
    method.set_grad_checkpointing(True)


def compile_each(method, backend='eager') -> None:
    compile_blocks(method, backend)


# Name: method, what happens to it before it is sharded, options of `shard`, and its dtype in autocast
WAYS = dict(
    replicas=('mae', (), dict(replicas=2), None),
    replicas_kept=('ijepa', (), dict(replicas=2, reshard=False), None),
    recomputed=('mae', (recompute,), {}, None),
    recomputed_by_timm=('simmim', (recompute_all,), {}, None),
    compiled=('mae', (compile_each,), {}, None),
    low_precision=(
        'ijepa', (), dict(replicas=2, param_dtype=torch.bfloat16, reduce_dtype=torch.float32), torch.bfloat16),
)
# With --all-models
MORE_WAYS = dict(
    compiled_and_recomputed=('ijepa', (recompute, compile_each), dict(replicas=2), None),
    compiled_by_autograd=('mae', (recompute, partial(compile_each, backend='aot_eager')), dict(reshard=False), None),
    compiled_low_precision=(
        'mae', (compile_each,), dict(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16), torch.bfloat16),
)


def make_method(name: str):
    torch.manual_seed(0)
    method = create_mim(name, 'test_vit', img_size=64, **SMALL[name]).train()
    with torch.no_grad():  # norms have weights and biases that lower precision rounds
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return method


def update(method, parts, autocast, unreduced: bool = False) -> torch.Tensor:
    """Add up the gradients of the batches of an update, all but the last one `unreduced`, and return the loss."""
    total = 0.
    for number, (images, noise) in enumerate(parts):
        with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None):
            loss = method(images, noise=noise).loss / len(parts)
        if unreduced and number + 1 < len(parts):
            with gradients_unreduced(method):
                loss.backward()
        else:
            loss.backward()
        total = total + loss.detach()
    return total


def batches(method):
    generator = torch.Generator().manual_seed(1)
    size = WORLD_SIZE * BATCHES
    images = torch.randn(size, 3, 64, 64, generator=generator)
    return images, torch.rand(method.noise_shape(size), generator=generator)


def gradients(method) -> Dict[str, torch.Tensor]:
    return {name: whole(p.grad) for name, p in method.named_parameters() if p.grad is not None}


def update_of_one_process(name: str, autocast) -> dict:
    """The same with all images, on a method to which nothing was done."""
    method = make_method(name)
    loss = update(method, [batches(method)], autocast)
    return dict(loss=loss, gradients=gradients(method))


def sharded_update(name: str, before, sharding: dict, autocast) -> dict:
    method, rank = make_method(name), dist.get_rank()
    for change in before:
        change(method)
    names, sizes = list(method.state_dict()), [p.numel() for p in method.parameters()]
    shard(method, torch.device('cpu'), **sharding)
    norm, dtypes, gathered = repeated_blocks(method)[0].norm1, [], []
    norm.register_forward_pre_hook(lambda module, _: dtypes.append(module.weight.dtype))
    frames = dynamo_counters['frames']['ok']
    method.register_forward_hook(lambda *_: gathered.append(not isinstance(norm.weight, DTensor)))
    parts = list(zip(*(x.chunk(BATCHES) for x in batches(method))))
    mine = [tuple(x[rank:rank + 1] for x in part) for part in parts]  # an image of each process
    loss = update(method, mine, autocast, unreduced=True)
    dist.all_reduce(loss)
    parameter = next(method.parameters())
    return dict(
        loss=loss / WORLD_SIZE,
        gradients=gradients(method),
        names=names == list(method.state_dict()),
        share=sum(p.to_local().numel() for p in method.parameters()) / sum(sizes),
        placements=[type(placement).__name__ for placement in parameter.placements],
        gathered=set(gathered),
        dtypes=set(dtypes),
        forwards=len(dtypes) // BATCHES,  # of a block; compiled ones do not call hooks
        compiled=dynamo_counters['frames']['ok'] - frames,  # code that was compiled
    )


def measure(arguments: List[str]) -> None:
    """Run in each process, and save the results of all ways."""
    dist.init_process_group('gloo')
    results = {name: sharded_update(*way) for name, way in (WAYS if arguments[1] == 'few' else MORE_WAYS).items()}
    if dist.get_rank() == 0:
        torch.save(results, arguments[0])
    dist.barrier()
    dist.destroy_process_group()
