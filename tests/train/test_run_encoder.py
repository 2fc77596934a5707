"""The encoder of a run loads in every way that timm has, bit for bit."""
import csv
import json
import resource
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import timm
from timm.mim.pretrain.task import create_method
from timm.mim.pretrain.encoder_files import save_encoder
from timm.mim.pretrain.options import resolve_options
from timm.models import _hub

CASES = [
    dict(model_name='test_vit'),
    dict(model_name='test_vit', img_size=(64, 96), in_chans=1),
    dict(model_name='test_vit', depth=2, global_pool='avg'),
    dict(model_name='swin_tiny_patch4_window7_224', img_size=64, depths=(1, 1), num_heads=(1, 2), embed_dim=8,
         window_size=2),
    dict(model_name='test_vit3'),
]


def make(**arguments):
    torch.manual_seed(0)
    model = timm.create_model(num_classes=0, **arguments).eval()
    for parameter in model.parameters():  # norms and biases start at values that a fresh model has too
        torch.nn.init.normal_(parameter, std=0.1)
    size = arguments.get('img_size', model.pretrained_cfg['input_size'][-1])
    size = size if isinstance(size, tuple) else (size, size)
    channels = arguments.get('in_chans', 3)
    config = dict(
        input_size=(channels, *size), mean=(0.3,) * channels, std=(0.2,) * channels, interpolation='bilinear',
        crop_pct=0.875, mode='RGB')
    return model, config


def assert_equal(loaded, model, config):
    images = torch.randn(2, *config['input_size'], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), model(images))


@pytest.mark.parametrize('arguments', CASES, ids=lambda arguments: str(list(arguments.values())))
def test_local_folder(arguments, tmp_path):
    model, config = make(**arguments)
    save_encoder(tmp_path, model.state_dict(), model, config, 'simmim')
    loaded = timm.create_model(f'local-dir:{tmp_path}/encoder', pretrained=True)
    assert_equal(loaded, model, config)
    assert loaded.pretrained_cfg['mean'] == [0.3] * config['input_size'][0]
    assert tuple(loaded.pretrained_cfg['input_size']) == config['input_size']
    assert loaded.pretrained_cfg['tag'] == 'simmim'
    # a classifier is the user's to ask for
    classifier = timm.create_model(f'local-dir:{tmp_path}/encoder', pretrained=True, num_classes=3)
    assert classifier.eval()(torch.zeros(1, *config['input_size'])).shape == (1, 3)
    shared = {name for name in model.state_dict() if not name.startswith('head')}
    for name in shared:
        assert torch.equal(classifier.state_dict()[name], model.state_dict()[name])


def test_weights_are_the_same_file_twice(tmp_path):
    model, config = make(model_name='test_vit')
    for _ in range(2):  # each evaluation that is the best writes them again
        torch.nn.init.normal_(model.cls_token)
        save_encoder(tmp_path, model.state_dict(), model, config, 'mae')
        for path in (tmp_path / 'encoder.safetensors', tmp_path / 'encoder' / 'model.safetensors'):
            assert torch.equal(load_file(path)['cls_token'], model.cls_token)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file())
    assert names == ['encoder.safetensors', 'encoder/config.json', 'encoder/model.safetensors']


def test_as_pretrained_weights(finished_run):
    file = str(finished_run / 'encoder.safetensors')
    expected = load_file(file)
    overlay = dict(file=file)
    model = timm.create_model('test_vit', img_size=64, num_classes=7, pretrained=True, pretrained_cfg_overlay=overlay)
    options, _ = resolve_options(Namespace(
        mim='simmim', device='cpu', model='test_vit', img_size=[64], mask_unit=16, pretrained_path=file))
    method, _ = create_method(options)  # --pretrained-path
    for loaded in (model, method.encoder):
        state = loaded.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_push_to_hub(finished_run, monkeypatch, tmp_path):
    class Hub:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return Namespace(repo_id=repo_id)

        def file_exists(self, **_):
            return False

        def upload_folder(self, folder_path, **_):
            shutil.copytree(folder_path, tmp_path / 'hub')
    monkeypatch.setattr(_hub, 'HfApi', Hub)
    encoder = timm.create_model(f'local-dir:{finished_run}/encoder', pretrained=True)
    timm.models.push_to_hf_hub(encoder, 'somebody/encoder', safe_serialization=True)
    assert (tmp_path / 'hub' / 'README.md').exists()
    published = timm.create_model(f'local-dir:{tmp_path}/hub', pretrained=True)
    expected = load_file(finished_run / 'encoder.safetensors')
    assert published.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in published.state_dict().items())
    assert tuple(published.pretrained_cfg['input_size']) == (3, 64, 64)


def test_full_disk(tmp_path):
    model, config = make(model_name='test_vit')
    save_encoder(tmp_path, model.state_dict(), model, config, 'mae')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    torch.nn.init.zeros_(model.cls_token)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match='encoder.safetensors'):
            save_encoder(tmp_path, model.state_dict(), model, config, 'mae')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
    assert Path(tmp_path / 'encoder' / 'config.json').exists()


def test_ijepa_has_no_best_epoch_since_its_losses_do_not_compare(train, images, tmp_path):
    """Its targets move with the encoder. The held-out loss rises here, and the encoder is that of the last epoch."""
    train(f'--mim ijepa --data-dir {images} --output {tmp_path} --experiment run --epochs 3 --epoch-repeats 4 '
          '--lr 1e-3 --mim-kwargs predictor_depth=1 predictor_dim=32 predictor_heads=2 num_targets=2 '
          '--checkpoint-hist 1')
    folder = tmp_path / 'run'
    with open(folder / 'summary.csv', newline='') as file:
        losses = [float(row['eval_loss']) for row in csv.DictReader(file)]
    assert min(losses) < losses[-1]  # by them the best epoch would be another
    results = json.loads((folder / 'summary.json').read_text())
    assert results['best_epoch'] is None and results['best'] is None
    checkpoint = torch.load(folder / 'last.pth.tar', weights_only=False)
    assert 'metric' not in checkpoint and not (folder / 'model_best.pth.tar').exists()
    assert [path.name for path in folder.glob('checkpoint-*')] == ['checkpoint-2.pth.tar']  # the newest, not the best
    encoder = load_file(folder / 'encoder.safetensors')
    target = checkpoint['task_state']['method']
    assert encoder and all(torch.equal(target[f'target_encoder.{name}'], tensor) for name, tensor in encoder.items())
