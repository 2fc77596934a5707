"""From pre-training to a classifier: whose weights it has, and how they are trained further."""
import json
import re
import shlex
from html import unescape

import pytest
import torch
from safetensors.torch import load_file

import timm
from timm.models import save_for_hf

NOTHING = '--opt sgd --lr 1e-12 --epochs 1'  # a run that leaves weights where they began


def weights(folder, key='state_dict'):
    return torch.load(folder / 'last.pth.tar', weights_only=False)[key]


def same(weights, others):
    return all(torch.allclose(weights[name], value, atol=1e-6) for name, value in others.items())


@pytest.mark.parametrize('flag', ['--pretrained-path', '--initial-checkpoint'])
def test_weights_of_a_file(flag, supervise, tmp_path):
    torch.manual_seed(1)
    source = timm.create_model('test_vit', num_classes=2, img_size=32)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    run = supervise(f'{flag} {tmp_path}/weights.pth {NOTHING}', tmp_path)
    trained = weights(run)
    expected = {name: value for name, value in source.state_dict().items() if not name.startswith('head.')}
    assert same(trained, expected)
    # a head of another run is for other classes, unless exactly that checkpoint is asked for
    assert torch.allclose(trained['head.weight'], source.head.weight, atol=1e-6) == (flag == '--initial-checkpoint')


def test_other_image_size(supervise, tmp_path):
    """The table of positions is interpolated, everything else is taken over."""
    source = timm.create_model('test_vit', num_classes=0, img_size=64)
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    run = supervise(f'--pretrained-path {tmp_path}/weights.pth --img-size 32 64 {NOTHING}', tmp_path)
    trained = weights(run)
    assert trained['pos_embed'].shape[1] - source.num_prefix_tokens == 2 * 4
    assert same(trained, {k: v for k, v in source.state_dict().items() if k != 'pos_embed'})
    args = (run / 'args.yaml').read_text()
    assert 'input_size:\n- 3\n- 32\n- 64' in args


def test_the_command_that_pretraining_prints(finished_run, labelled, train, tmp_path):
    """It trains, from the encoder of that run."""
    command = json.loads((finished_run / 'summary.json').read_text())['fine_tune']
    program, script, *flags = shlex.split(
        command.replace('LABELLED_FOLDER', str(labelled)).replace('--num-classes N', '--num-classes 2'))
    assert (program, script) == ('python', 'train.py')
    encoder = load_file(finished_run / 'encoder.safetensors')

    def fine_tune(name, more):
        more = f'--device cpu --workers 0 --batch-size 8 --output {tmp_path} --experiment {name} {more}'
        train(shlex.join(flags) + ' ' + more, tiny=False)
        return weights(tmp_path / name)

    assert same(fine_tune('still', NOTHING), encoder)
    trained = fine_tune('trained', '--epochs 2 --warmup-epochs 0 --layer-decay-no-opt-scale 0')
    assert not same(trained, encoder) and all(value.isfinite().all() for value in trained.values())


def test_the_printed_lines_of_a_run_that_needs_quotes(train, images, labelled, monkeypatch, tmp_path):
    """Arguments of the model that are tuples, or flags of their own with labels, in a folder with spaces and quotes."""
    folder = tmp_path / "reader's runs" / 'run'
    kwargs = ['patch_size=(8, 16)', 'global_pool=avg', 'class_token=False', 'drop_path_rate=0.2']
    train(shlex.join(['--data-dir', str(images), '--output', str(folder.parent), '--experiment', 'run', '--epochs', '1',
                      '--model-kwargs', *kwargs]))
    log = (folder / 'train.log').read_text()
    command, load, load_and_publish = (
        re.search(rf'\n{title}:\n((?:  .*\n)+)', log)[1].splitlines()
        for title in ('fine-tune it', 'load the encoder', 'or load and publish it'))

    monkeypatch.chdir(tmp_path)
    (tmp_path / 'LABELLED_FOLDER').symlink_to(labelled)
    flags = command[0].replace('--num-classes N ', '--num-classes 2 ').removeprefix('  python train.py ')
    train(f'{flags} --device cpu --workers 0 --batch-size 8 --output . --experiment tuned {NOTHING}', tiny=False)
    encoder = load_file(folder / 'encoder.safetensors')
    assert encoder['patch_embed.proj.weight'].shape[2:] == (8, 16) and same(weights(tmp_path / 'tuned'), encoder)

    for lines in (load, load_and_publish[:1]):
        namespace = dict(timm=timm)
        exec('\n'.join(line.strip() for line in lines), namespace)
        assert same(namespace['encoder'].state_dict(), encoder)
    evaluate = re.search(r'python validate.py [^<]*', unescape((folder / 'report.html').read_text()))[0]
    assert shlex.split(evaluate)[2:] == ['--mim', 'simmim', '--checkpoint', str(folder / 'last.pth.tar')]


def test_layer_decay(supervise, tmp_path):
    """Each layer learns by a factor slower than the one above it; from a limit on, it does not learn at all."""
    run = supervise('--layer-decay 0.5 --layer-decay-no-opt-scale 0.01 --epochs 1', tmp_path)
    groups = torch.load(run / 'last.pth.tar', weights_only=False)['optimizer']['param_groups']
    scales = sorted({group['lr_scale'] for group in groups}, reverse=True)
    depth = len(timm.create_model('test_vit').blocks)
    assert scales == [0.5 ** i for i in range(depth + 2)][:len(scales)]
    assert {round(group['lr'] / group['lr_scale'], 8) for group in groups} == {1e-3}


def test_moving_average(supervise, tmp_path):
    """With a decay of 0 it is the model; with a decay of 1 it stays at the beginning."""
    follows = supervise('--model-ema --model-ema-decay 0 --epochs 1', tmp_path / 'a')
    assert same(weights(follows), weights(follows, 'state_dict_ema'))
    stays = supervise('--model-ema --model-ema-decay 1 --epochs 1', tmp_path / 'b')
    longer = supervise('--model-ema --model-ema-decay 1 --epochs 2', tmp_path / 'c')
    assert same(weights(stays, 'state_dict_ema'), weights(longer, 'state_dict_ema'))
    assert not same(weights(stays), weights(stays, 'state_dict_ema'))


def test_classes_of_the_flag_go_before_those_of_a_folder(teacher, supervise, tmp_path):
    run = supervise(f'--model {teacher} --model-kwargs num_classes=7 --num-classes 3 {NOTHING}', tmp_path)
    assert weights(run)['head.weight'].shape[0] == 3


def test_head(supervise, tmp_path):
    plain = weights(supervise(NOTHING, tmp_path / 'plain'))
    run = weights(supervise(f'--head-init-scale 0.5 --head-init-bias -2 {NOTHING}', tmp_path / 'scaled'))
    assert torch.allclose(run['head.weight'], plain['head.weight'] / 2, atol=1e-6)
    assert torch.allclose(run['head.bias'], torch.full((2,), -2.), atol=1e-6)


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp('teacher')
    model = timm.create_model('test_vit', num_classes=2, img_size=32)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    model.head.weight.data.neg_()  # with this seed, its opinions are then the opposite of the labels
    save_for_hf(model, folder)
    return f'local-dir:{folder}'


@pytest.mark.parametrize('flags', [
    '', '--task-loss-weight 0.3 --kd-temperature 2', '--kd-distill-type feature',
    '--kd-distill-type token --model deit_tiny_distilled_patch16_224 --model-kwargs depth=1 embed_dim=48 --mixup 0.2',
])
def test_distillation(flags, teacher, supervise, tmp_path):
    run = supervise(f'--kd-model-name {teacher} --epochs 1 {flags}', tmp_path)
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=False)
    assert not any('teacher' in name for name in checkpoint['state_dict'])
    assert checkpoint['metric'] >= 0


def test_teacher_alone_is_followed(teacher, supervise, tmp_path):
    """Without a weight for labels, a student learns what the teacher says, right or wrong."""
    run = supervise(f'--kd-model-name {teacher} --task-loss-weight 0 --epochs 12 --val-interval 12 --no-aug --lr 3e-3',
                    tmp_path)
    student = timm.create_model('test_vit', num_classes=2, img_size=32).eval()
    student.load_state_dict(weights(run))
    master = timm.create_model(teacher, pretrained=True).eval()
    torch.manual_seed(0)
    colours = torch.tensor([[200, 30, 30], [30, 30, 200]])[:, :, None, None] / 255
    images = (colours.expand(2, 3, 32, 32) + 0.1 * torch.rand(2, 3, 32, 32) - 0.5) / 0.5
    with torch.no_grad():
        found, expected = student(images).softmax(1)[:, 0], master(images).softmax(1)[:, 0]
    assert (expected - torch.tensor([0., 1.])).abs().min() > 0.5
    assert torch.allclose(found, expected, atol=0.2)
