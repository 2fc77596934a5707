"""Runs that start from a converted checkpoint, and checkpoints of runs that are converted."""
import csv

import pytest
import torch

from timm.mim.convert import convert


def test_run_to_hugging_face_and_on_from_there(train, finished_run, images, tmp_path):
    convert(finished_run / 'last.pth.tar', tmp_path / 'theirs', to='huggingface-vit-mim')
    convert(tmp_path / 'theirs', tmp_path / 'start.pth.tar', to='task')
    before = torch.load(finished_run / 'last.pth.tar', weights_only=False)
    after = torch.load(tmp_path / 'start.pth.tar', weights_only=True)
    assert all(torch.equal(after['state_dict'][name], tensor) for name, tensor in before['state_dict'].items())

    # with next to no learning rate, what comes out of the first epoch is what went in
    train(f'--data-dir {images} --output {tmp_path} --experiment on --epochs 1 --lr 1e-12 --resume '
          f'{tmp_path / "start.pth.tar"}')
    trained, resumed = (summary_rows(folder)[-1] for folder in (finished_run, tmp_path / 'on'))
    assert float(resumed['eval_masked_l1']) == pytest.approx(float(trained['eval_masked_l1']), rel=1e-5)
    assert resumed['epoch'] == '0'


def summary_rows(folder):
    with open(folder / 'summary.csv') as file:
        return list(csv.DictReader(file))
