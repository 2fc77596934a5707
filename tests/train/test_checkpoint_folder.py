"""Checkpoints that are folders: written in the background, read by any number of processes."""
import os
import pickle
import random
import shutil
import threading

import pytest
import torch
import torch.distributed as dist
from benchmarks import saving
from run_folders import load
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from timm.mim import checkpoint_folder
from timm.mim.checkpoint_folder import complete_folder, named_tensors, read_tensors, start_writing, without_values
from timm.mim.pretrain import run_saver
from timm.mim.pretrain.checkpoints import load_checkpoint, newest_checkpoint
from timm.mim.pretrain.errors import UserError
from timm.mim.pretrain.run_saver import BackgroundWriter, RunSaver


def state():
    torch.manual_seed(0)
    return dict(
        state_dict={
            'norm.bias': torch.randn(5), 'stem.weight': torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last),
            'tokens': torch.randn(1, 7, 4), 'half': torch.randn(9, 2).bfloat16(), 'steps': torch.tensor(7)},
        optimizer=dict(
            state={0: dict(step=torch.tensor(3.), exp_avg=torch.randn(6, 3, 4, 4))}, param_groups=[dict(lr=1.)]),
        epoch=3,
    )


def write(folder, content):
    start_writing(folder, dict(named_tensors(content))).result()
    complete_folder(folder, without_values(content))


def test_content_is_the_same(tmp_path):
    written = state()
    pending = start_writing(tmp_path / 'x.dcp', dict(named_tensors(written)))
    content = without_values(written)
    for _, tensor in named_tensors(written):
        tensor.zero_()  # as the next updates of the run do
    written['optimizer']['state'][0]['step'].add_(1)
    pending.result()
    complete_folder(tmp_path / 'x.dcp', content)
    loaded = load_checkpoint(tmp_path / 'x.dcp')
    assert all(tensor.is_meta for _, tensor in named_tensors(loaded.content))
    expected = state()
    for part in ('state_dict', 'optimizer'):
        found = dict(named_tensors(loaded.part(part), part))
        for name, tensor in named_tensors(expected[part], part):
            assert torch.equal(found[name], tensor) and found[name].stride() == tensor.stride(), name
    assert loaded.content['state_dict']['steps'] == 7 and loaded.content['optimizer']['state'][0]['step'] == 3


@pytest.mark.parametrize('world_size', [2, 4])
def test_each_process_reads_its_own_part(world_size, tmp_path):
    """Also of tensors with fewer rows than processes, of which some processes have none."""
    write(tmp_path / 'x.dcp', state())
    content = load_checkpoint(tmp_path / 'x.dcp').content['state_dict']
    whole = state()['state_dict']
    for rank in range(world_size):
        dist.init_process_group('fake', store=FakeStore(), rank=rank, world_size=world_size)
        try:
            # PyTorch remembers the parts of equal meshes, whichever process asks: the name tells these apart
            mesh = dist.init_device_mesh('cpu', (world_size,), mesh_dim_names=(f'of rank {rank}',))
            like = {
                f'state_dict.{name}': distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)], src_data_rank=None)
                for name, tensor in whole.items() if tensor.dim() and name != 'half'}
            found = read_tensors(tmp_path / 'x.dcp', content, 'state_dict', like)
            assert torch.equal(found['half'], whole['half'])  # is not sharded
            for name in like:
                name = name.removeprefix('state_dict.')
                part = whole[name].chunk(world_size)[rank:rank + 1]
                assert isinstance(found[name], DTensor)
                assert torch.equal(found[name].to_local(), part[0] if part else whole[name][:0]), (rank, name)
        finally:
            dist.destroy_process_group()


def test_every_byte_of_what_is_loaded_is_verified(tmp_path):
    folder = tmp_path / 'x.dcp'
    write(folder, state())
    expected = dict(named_tensors(state()))
    generator = random.Random(0)
    refused = 0
    for number in range(150):
        path = folder / ('.metadata', '__0_0.distcp', 'content.pt')[number % 3]
        content = path.read_bytes()
        place, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1:])
        try:
            loaded = load_checkpoint(folder)
            found = dict(named_tensors({name: loaded.part(name) for name in ('state_dict', 'optimizer')}))
            assert loaded.content['epoch'] == 3 and found.keys() == expected.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), (path.name, place)
        except (UserError, ValueError):  # which `mismatch_errors` makes of it when a run loads
            refused += 1
        path.write_bytes(content)
    assert refused > 100


class Attack:
    def __reduce__(self):
        return os.mkdir, ('attacked',)


def test_code_in_metadata_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'x.dcp', state())
    code = pickle.dumps(Attack())
    (tmp_path / 'x.dcp' / '.metadata').write_bytes(code)
    with pytest.raises(ValueError, match='is not the metadata of a checkpoint: it needs posix.mkdir'):
        read_tensors(tmp_path / 'x.dcp', without_values(state()))
    with pytest.raises(UserError, match='its checksum is another'):
        load_checkpoint(tmp_path / 'x.dcp')
    assert not (tmp_path / 'attacked').exists()


def test_one_save_at_a_time_and_no_error_is_lost(tmp_path, monkeypatch):
    """The next save waits for the one before, and its error ends the run there at the latest."""
    running, most, release = [], [], threading.Event()
    begin = start_writing

    def slow(folder, tensors, group):
        running.append(folder)
        most.append(len(running))
        return begin(folder, tensors, group)

    def complete():
        release.wait(20)
        running.pop()
    monkeypatch.setattr(run_saver, 'start_writing', slow)
    writer = BackgroundWriter(tmp_path)
    placed = []
    tensors = dict(named_tensors(state()))
    writer.start(tmp_path / 'a.dcp', tensors, complete, lambda: placed.append('a'))
    writer.poll()
    assert placed == []  # the training goes on meanwhile
    threading.Timer(0.2, release.set).start()
    writer.start(tmp_path / 'b.dcp', tensors, complete, lambda: placed.append('b'))
    assert placed == ['a']
    writer.wait()
    assert placed == ['a', 'b'] and most == [1, 1]

    def fail():
        raise OSError(28, 'No space left on device')
    writer.start(tmp_path / 'c.dcp', tensors, fail, lambda: placed.append('c'))
    with pytest.raises(OSError, match=r"Checkpoint of \d+ bytes cannot be written to '.*c.dcp', where .*No space left"):
        writer.start(tmp_path / 'd.dcp', tensors)
    assert placed == ['a', 'b'] and not list(tmp_path.glob('*.dcp*'))


def test_a_folder_gives_way_to_the_next(tmp_path, monkeypatch):
    """Before and after every change there is a complete one, whenever the run is killed."""
    saver = RunSaver.__new__(RunSaver)
    saver.folder, saver.extension = tmp_path, '.dcp'
    write(tmp_path / 'last.dcp', state())
    write(tmp_path / 'writing.dcp.partial', state())

    def watched(change):
        def checked(*args, **kwargs):
            change(*args, **kwargs)
            assert newest_checkpoint(tmp_path) is not None
        return checked
    monkeypatch.setattr(run_saver.os, 'replace', watched(os.replace))
    monkeypatch.setattr(run_saver.shutil, 'rmtree', watched(shutil.rmtree))
    saver._replace(str(tmp_path / 'writing.dcp.partial'), str(tmp_path / 'last.dcp'))
    assert [path.name for path in tmp_path.iterdir()] == ['last.dcp']


def test_folder_that_other_machines_do_not_see(tmp_path):
    """A file of another process lies on its own disk."""
    start_writing(tmp_path / 'x.dcp', dict(named_tensors(state()))).result()
    (tmp_path / 'x.dcp' / '__0_0.distcp').unlink()
    with pytest.raises(OSError, match='__0_0.distcp is missing .* must share the folder of the run'):
        complete_folder(tmp_path / 'x.dcp', without_values(state()))


def test_format_changes_when_a_run_goes_on(train, images, tmp_path):
    """Of a name there is one checkpoint, the newer one, and a run goes on from either format."""
    flags = f'--data-dir {images} --output {tmp_path} --experiment run --epochs 3 --checkpoint-hist 1 --resume auto'
    names = []
    for epochs, form in ((1, 'file'), (2, 'folder'), (3, 'file')):
        if epochs == 3:  # as if killed when this folder had given up its place, and the next one not yet taken it
            (tmp_path / 'run' / 'last.dcp').rename(tmp_path / 'run' / 'previous.dcp')
        train(f'{flags} --checkpoint-format {form} --stop-epoch {epochs}')
        names.append(sorted(path.name for path in (tmp_path / 'run').iterdir() if path.suffix in ('.dcp', '.tar')))
    assert names[0] == ['checkpoint-0.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
    assert 'last.dcp' in names[1] and 'last.pth.tar' not in names[1]
    assert 'last.pth.tar' in names[2] and not {'last.dcp', 'previous.dcp'} & set(names[2])
    assert all(len([name for name in found if name.startswith(kind)]) == 1
               for found in names for kind in ('last', 'model_best', 'checkpoint'))
    assert load(tmp_path / 'run' / 'last.pth.tar')['run']['update'] == 9


def test_benchmark(tmp_path):
    found = saving.measure('simmim', 'test_vit', 1, str(tmp_path))
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in found.values())


def test_size_decides(train, images, tmp_path, monkeypatch):
    flags = f'--data-dir {images} --output {tmp_path} --epochs 1'
    train(f'{flags} --experiment small')
    assert (tmp_path / 'small' / 'last.pth.tar').is_file()
    size = (tmp_path / 'small' / 'last.pth.tar').stat().st_size
    monkeypatch.setattr('timm.mim.pretrain.trainer.FOLDER_BYTES', size // 2)
    train(f'{flags} --experiment large')
    assert checkpoint_folder.is_checkpoint_folder(tmp_path / 'large' / 'last.dcp')
    assert 'last.dcp' in (tmp_path / 'large' / 'report.html').read_text()


def test_older_pytorch(train, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('timm.mim.pretrain.options.has_folders', False)
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {images} --output {tmp_path} --checkpoint-format folder')
    assert stopped.value.code == 2
    assert '--checkpoint-format folder needs PyTorch 2.5 or newer' in capsys.readouterr().err
