"""Fault 7: a checkpoint that holds a program does nothing; what a run gives away holds none."""
import builtins

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import write_images


class Program:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return builtins.exec, (f'open({str(self.path)!r}, "w")',)


def save_zip(path, content):
    torch.save(content, path)


def save_as_before_torch_1_6(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize('save', [save_zip, save_as_before_torch_1_6])
@pytest.mark.parametrize('flags', [
    '--resume {folder}/x.pth.tar',
    '--resume auto',
    '--initial-checkpoint {folder}/x.pth.tar',
    '--pretrained-path {folder}/x.pth.tar',
])
def test_program_is_not_run(flags, save, train, tmp_path, capsys):
    write_images(tmp_path / 'images', 4)
    (tmp_path / 'run').mkdir()
    done = tmp_path / 'done'
    save(tmp_path / 'run' / 'x.pth.tar', dict(state_dict={}, epoch=0, more=Program(done)))
    torch.load(tmp_path / 'run' / 'x.pth.tar', weights_only=False)
    assert done.exists()  # it would
    done.unlink()
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {tmp_path}/images --output {tmp_path} --experiment run --epochs 1 '
              + flags.format(folder=tmp_path / 'run'))
    assert stopped.value.code == 2
    assert 'Traceback' not in capsys.readouterr().err
    assert not done.exists()


def test_encoders_are_safetensors(finished_run):
    weights = [path for path in finished_run.rglob('*') if path.is_file() and path.stat().st_size > 500_000]
    exported = [path for path in weights if not path.name.endswith('.pth.tar')]
    assert exported
    for path in exported:
        assert path.suffix == '.safetensors' and load_file(path)
