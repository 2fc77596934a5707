"""SparK on convolutional models from images to a classifier, as a reader would run it."""
import json
import shlex

import pytest
import torch
from safetensors.torch import load_file

import timm

NOTHING = '--opt sgd --lr 1e-12 --warmup-epochs 0 --epochs 1'  # a run that leaves weights where they began


@pytest.mark.parametrize('model, flags', [
    ('test_resnet', ['--opt', 'lamb', '--bce-loss', '300']),
    ('test_efficientnet', ['--opt', 'lamb', '--bce-loss', '300']),
    ('regnety_002', ['--opt', 'lamb', '--bce-loss', '300']),
    ('test_convnext2', ['--opt', 'adamw', '--layer-decay', '400']),
])
def test_from_images_to_a_classifier(model, flags, train, images, labelled, tmp_path):
    train(f'--mim spark --device cpu --model {model} --img-size 64 96 --workers 0 --batch-size 8 --epochs 1 --lr 1e-2 '
          f'--warmup-epochs 0 --mim-kwargs decoder_dim=32 --data-dir {images} --output {tmp_path} --experiment run',
          tiny=False)
    folder = tmp_path / 'run'

    # the export is a plain timm model, which training has moved and which sees whole images of any size
    encoder = load_file(folder / 'encoder.safetensors')
    plain = timm.create_model(model, num_classes=0)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    plain.load_state_dict(encoder)
    moved = [name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > len(before) / 2 and plain.eval()(torch.randn(1, 3, 64, 64)).isfinite().all()

    # the command that the run prints trains a classifier from these weights
    command = json.loads((folder / 'summary.json').read_text())['fine_tune']
    assert set(flags) <= set(shlex.split(command))
    if model != 'test_resnet':
        return
    command = command.replace('LABELLED_FOLDER', str(labelled)).replace('--num-classes N', '--num-classes 2')
    command = command.removeprefix('python train.py') + f' --device cpu --workers 0 --batch-size 8 --output {tmp_path}'
    learned = {name for name, _ in plain.named_parameters()}
    for name, more in (('still', NOTHING), ('tuned', '--epochs 2 --warmup-epochs 0')):
        train(f'{command} --img-size 32 --experiment {name} {more}', tiny=False)
        weights = torch.load(tmp_path / name / 'last.pth.tar', weights_only=False)['state_dict']
        same = [torch.allclose(weights[key], encoder[key], atol=1e-6) for key in learned]
        assert all(same) == (name == 'still')
        assert all(tensor.isfinite().all() for tensor in weights.values())
