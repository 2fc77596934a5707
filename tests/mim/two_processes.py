"""Gradients of a method in one of two processes, with DistributedDataParallel and with FSDP2.

    python two_processes.py RANK RENDEZVOUS_FILE RESULT_FILE
"""
import copy
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from timm.mim import FCMAE
from timm.mim.pretrain.sharding import shard, whole
from timm.models.resnet import BasicBlock, ResNet

SIZE = (64, 64)


def make_method(**options):
    """FCMAE on a ResNet with batch norms and squeeze-excite. Its decoder has no batch norm."""
    torch.manual_seed(0)
    backbone = ResNet(
        BasicBlock, (1, 1, 1, 1), num_classes=0, stem_width=8, channels=(8, 8, 16, 16),
        block_args=dict(attn_layer='se'))
    method = FCMAE(backbone, SIZE, decoder_dim=16, **options).train()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return method


def batch():
    """Four images, of which two differ from the others in brightness and contrast, and their masks."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, *SIZE, generator=generator)
    images[2:] = images[2:] * 3 + 2
    mask = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    return images, mask


def state_after_step(method, model, images, mask):
    """Gradients and running statistics."""
    loss = model(images, mask=mask).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.named_parameters() if parameter.grad is not None}
    return dict(gradients=whole(gradients), statistics=whole(dict(method.named_buffers())), loss=loss.detach())


def main(rank, rendezvous, result):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2)
    images, mask = (x.chunk(2)[rank] for x in batch())
    results = {}
    for synchronized in (True, False):
        method = make_method(sync_batch_norm=synchronized)
        twin = copy.deepcopy(method)
        results['ddp', synchronized] = state_after_step(
            method, DistributedDataParallel(method, broadcast_buffers=False), images, mask)
        shard(twin, torch.device('cpu'))
        results['fsdp', synchronized] = state_after_step(twin, twin, images, mask)
    for state in results.values():
        dist.all_reduce(state['loss'], dist.ReduceOp.SUM)
    if rank == 0:
        torch.save({name: dict(state, loss=state['loss'] / 2) for name, state in results.items()}, result)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == '__main__':
    main(int(sys.argv[1]), *sys.argv[2:])
