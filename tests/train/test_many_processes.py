"""64 processes, simulated in one: what each of them sees, and what the first of them has to do."""
import pickle
from argparse import Namespace
from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from test_pretrain_data import config_of, keys_of
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm.mim import create_mim
from timm.mim.masking import keyed_noise
from timm.mim.pretrain.data.loading import EpochSampler, create_train_loader
from timm.mim.pretrain.data.naflex import NaFlexSampler
from timm.mim.pretrain.data.shards import Sample
from timm.mim.pretrain.data.streams import Stream
from timm.mim.pretrain.hold_out import hold_out, load_held_out
from timm.mim.pretrain.options import resolve_options
from timm.mim.pretrain.plan import LiveMemory
from timm.mim.pretrain.processes import settle_buckets
from timm.mim.pretrain.run_saver import sharded_tensors
from timm.mim.pretrain.task import create_method
from timm.mim.pretrain.trainer import Trainer

RANKS = 64
CPU = torch.device('cpu')
TINY = dict(
    device='cpu', mim='mae', model='test_vit', img_size=[32, 32], batch_size=2, workers=0, drop_path=0.,
    model_kwargs=dict(depth=2), mim_kwargs=dict(decoder_depth=1, decoder_dim=32, decoder_heads=2))


class Images(torch.utils.data.Dataset):
    """Images of one colour."""
    transform = None

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.transform(Image.new('RGB', (32, 32), (index % 256, index // 256, 0))), 0


def options_of(**values):
    return resolve_options(Namespace(**{**TINY, **values}))[0]


def image_config():
    return {**config_of(), 'input_size': (3, 32, 32)}


@pytest.mark.parametrize('num_images, steps', [(64 * 6, 1), (1000, 2)])
def test_order_of_images(num_images, steps):
    """64 processes with 3 images each see the order of one process with 192."""
    whole = keys_of(EpochSampler(num_images, 3 * RANKS, steps, seed=5), epoch=2)
    parts = [keys_of(EpochSampler(num_images, 3, steps, seed=5, rank=rank, world_size=RANKS), epoch=2)
             for rank in range(RANKS)]
    batches = [part[start:start + 3] for start in range(0, len(parts[0]), 3) for part in parts]
    assert [key for batch in batches for key in batch] == whole
    assert len({key.index for key in whole}) == len(whole)  # no image twice


def test_order_of_naflex_images():
    parts = [list(NaFlexSampler(5000, [16, 64], 4, rank=rank, world_size=RANKS)) for rank in range(RANKS)]
    seen = Counter(key.index for part in parts for batch in part for key in batch.images)
    assert len(seen) == 5000 // RANKS * RANKS and set(seen.values()) == {1}
    for batches in zip(*parts):  # all processes have batches of one shape, which lie side by side
        assert len({(batch.seq_len, len(batch.images)) for batch in batches}) == 1
        positions = [key.position for batch in batches for key in batch.images]
        assert positions == list(range(positions[0], positions[0] + len(positions)))


@pytest.mark.parametrize('num_shards', [128, 10])
def test_stream_is_shared(num_shards):
    """Whole shards for each of 64 readers, or with fewer shards every 64th image."""
    class Shards:
        def __len__(self):
            return num_shards

        def read(self, shard):
            return (Sample(f'{shard}-{number}', b'') for number in range(1280 // num_shards))

    stream = Stream(Shards(), 1280, held_out=0., num_workers=0)
    seen = Counter()
    for reader in range(RANKS):
        samples = stream.samples(seed=0, epoch=1, reader=reader, readers=RANKS)
        seen.update(next(samples).key for _ in range(1280 // RANKS))
    assert len(seen) == 1280 and set(seen.values()) == {1}


def test_masks():
    """Those of one process with the whole batch, and no two images have the same."""
    method = create_mim('mae', 'test_vit', img_size=160)
    size = method.noise_shape(1)[1]
    whole = method.make_mask(keyed_noise(3, 7, torch.arange(2 * RANKS), size))
    parts = [method.make_mask(keyed_noise(3, 7, torch.arange(2 * rank, 2 * rank + 2), size)) for rank in range(RANKS)]
    assert torch.equal(torch.cat(parts), whole)
    assert len(whole.flatten(1).unique(dim=0)) == 2 * RANKS


@pytest.mark.parametrize('count', [200, 40])  # with 40 images, 24 processes have none
def test_held_out_share(count):
    shares = [load_held_out(Images(count), options_of(), image_config(), CPU, rank, RANKS) for rank in range(RANKS)]
    numbers = torch.cat([share.numbers for share in shares]).tolist()
    assert sorted(numbers) == list(range(count))
    assert max(len(share.numbers) for share in shares) - min(len(share.numbers) for share in shares) <= 1
    for share in shares:
        colours = ((share.images[:, :2, 0, 0] * 0.25 + 0.5) * 255).round().int() * torch.tensor([1, 256])
        assert colours.sum(1).tolist() == share.numbers.tolist()


@contextmanager
def simulated(world_size):
    """Be the first of `world_size` processes, whose collectives do nothing."""
    dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield Namespace(device='cpu', rank=0, local_rank=0, world_size=world_size, distributed=True)
    finally:
        dist.destroy_process_group()


class Traffic(TorchDispatchMode):
    """Counts the collectives, and the bytes of their results on this process."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == 'c10d':  # the first argument is the result
            self.add(args[0])
        elif func.namespace == '_c10d_functional' and not func._schema.name.endswith(('wait_tensor', 'autograd')):
            self.add(result)
        return result

    def add(self, tensors):
        self.calls += 1
        self.bytes += sum(value.nbytes for value in tree_leaves(tensors) if isinstance(value, torch.Tensor))


def reduced_bucket(traffic, bucket):
    """In place of the gradients' all-reduce, which the simulated group does not support."""
    traffic.add(bucket.buffer())
    reduced = torch.futures.Future()
    reduced.set_result(bucket.buffer())
    return reduced


def tensor_bytes(state):
    return sum(getattr(value, '_local_tensor', value).nbytes for value in tree_leaves(state)
               if isinstance(value, torch.Tensor))


def costs(world_size, sharded):
    """Return what an update, a state to save and an evaluation cost the first of many processes.

    By name: number of collectives, bytes that it receives, and bytes at the peak or of the result.
    """
    found = {}
    with simulated(world_size) as process:
        options = options_of(fsdp=sharded, model_ema=True)
        torch.manual_seed(0)
        method, _ = create_method(options)
        loader = create_train_loader(Images(1024), options, image_config(), CPU, 0, world_size)
        traffic = Traffic()

        def settle(ddp):
            ddp.register_comm_hook(traffic, reduced_bucket)
            settle_buckets(ddp)
        with mock.patch('timm.mim.pretrain.task.settle_buckets', settle):
            trainer = Trainer(options, method, loader, process, stop=False)
        updates = trainer.updates()
        next(updates)
        traffic.__init__()
        with LiveMemory() as memory, traffic:
            next(updates)
        found['update'] = traffic.calls, traffic.bytes, sum(memory.peak.values())
        with Traffic() as traffic:
            state = trainer.state_dict()
        found['state'] = traffic.calls, traffic.bytes, tensor_bytes(state)
        held_out = hold_out(Images(world_size * 2), options, image_config(), process)
        with Traffic() as traffic:
            held_out.measure(trainer.trained_method, nullcontext)
        found['evaluation'] = traffic.calls, traffic.bytes, tensor_bytes(held_out.images)
    return found


def test_save_of_a_folder_gathers_no_tensor():
    """Each process keeps its share. What must grow on the first one: a plan from each process, which says where its
    parts of the tensors lie, less than a kilobyte for each of them.
    """
    kept, plans = [], []
    for world_size in (2, RANKS):
        with simulated(world_size) as process:
            options = options_of(fsdp=True, checkpoint_format='folder')
            method, _ = create_method(options)
            loader = create_train_loader(Images(256), options, image_config(), CPU, 0, world_size)
            trainer = Trainer(options, method, loader, process, stop=False)
            next(trainer.updates())
            with Traffic() as traffic:
                state = trainer.state_dict()
            assert traffic.calls <= 4 and traffic.bytes < 100  # checks over all processes, and means
            tensors = sharded_tensors(state)
            kept.append(tensor_bytes(tensors))
            plans.append(len(pickle.dumps(create_default_local_save_plan(tensors, False))) / len(tensors))
    assert kept[1] < kept[0] / 8
    assert plans[1] == pytest.approx(plans[0], rel=0.01) and plans[1] < 1000


@pytest.mark.parametrize('sharded', [False, True])
def test_first_process_does_not_work_for_the_others(sharded):
    """64 processes cost the first one what two do, in an update and in a save.

    What must grow with their number: an object of a few hundred bytes from each of them, with its sums of the held-out
    errors; and padding, because FSDP2 gives each process a row of a tensor: a position embedding (1, N, C) is gathered
    as 64 times its size.
    """
    two, many = costs(2, sharded), costs(RANKS, sharded)
    padding = 1.25 if sharded else 1
    for name in ('update', 'state'):
        assert many[name][0] == two[name][0], name
        assert all(after <= padding * before for before, after in zip(two[name], many[name])), (name, two, many)
    calls, received, images = (after - before for before, after in zip(two['evaluation'], many['evaluation']))
    assert calls == 0 and images == 0
    assert received < (0.25 * two['evaluation'][1] if sharded else 400 * (RANKS - 2))
