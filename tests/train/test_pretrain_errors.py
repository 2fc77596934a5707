"""A user's mistake: one line that says what is wrong, exit code 2, nothing written."""
import subprocess
import sys
import tarfile

import pytest
import timm
import torch
from mutations import flip_a_bit
from tiny_runs import SCRIPT, environment, write_images

from timm.mim.pretrain.flags.run_options import DEFAULTS
from timm.mim.pretrain.options import MEANINGLESS, UNSUPPORTED


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp('places')
    write_images(root / 'images', 4)
    write_images(root / 'one', 1)
    (root / 'empty').mkdir()
    (root / 'file').write_text('text')
    (root / 'old').mkdir()
    (root / '\udcff').mkdir()
    (root / 'old' / 'args.yaml').write_text('')
    (root / 'unknown.yaml').write_text('mim: simmim\nbatchsize: 3\n')
    (root / 'list.yaml').write_text('- mim\n')
    (root / 'binary.yaml').write_bytes(bytes(range(128, 256)))
    (root / 'empty.pth').touch()
    (root / 'text.pth').write_text('no weights\n' * 30)
    (root / 'text.safetensors').write_text('no weights\n' * 30)
    torch.save({'some.weight': torch.zeros(3)}, root / 'others.pth')
    torch.save(timm.create_model('test_vit', num_classes=0, img_size=64).state_dict(), root / 'flipped.pth')
    flip_a_bit(root / 'flipped.pth')
    weights = timm.create_model('test_vit', num_classes=0, img_size=64).state_dict()
    partial = {name: tensor for name, tensor in weights.items() if not name.startswith('blocks.1.')}
    torch.save(partial, root / 'partial.pth')
    deeper = {name.replace('blocks.1.', 'blocks.6.'): tensor for name, tensor in weights.items()}
    torch.save({**weights, **deeper}, root / 'larger.pth')
    (root / 'text.tar').write_text('no archive\n' * 300)
    with tarfile.open(root / 'whole.tar', 'w') as archive:
        archive.add(root / 'images', 'images')
    with tarfile.open(root / 'whole.tar') as archive:
        first = archive.getmembers()[2].offset
    content = (root / 'whole.tar').read_bytes()
    (root / 'cut.tar').write_bytes(content[:first])  # between two members, where tarfile sees nothing wrong
    (root / 'half.tar').write_bytes(content[:first + 700])
    (root / 'nothing.tar').write_bytes(bytes(10240))
    return root


CASES = [
    ('--mim mae2', "there is no method 'mae2'; did you mean mae?"),
    ('--data-dir {places}/empty', 'no image in'),
    ('--data-dir {places}/nowhere', 'does not exist'),
    ('--data-dir {places}/one', 'one image, and one must be held out'),
    ('--data-dir {places}/file', 'neither a folder nor'),
    ('--dataset hfds/x/y --data-dir {places}', 'hfds/x/y with --train-split'),
    ('--val-split nowhere', "no folder 'nowhere'"),
    ('--train-split nowhere', "no folder 'nowhere'"),
    ('--model pit_ti_224', 'list_mim_models'),
    ('--model vit_bas_patch16_224', 'did you mean vit_base_patch16_224'),
    ('--model-kwargs nonsense=1', "unexpected keyword argument 'nonsense'"),
    ('--model-kwargs patch_drop_rate=0.5', 'patch_drop_rate'),
    ('--mask-ratio 0', '--mask-ratio 0 must lie between 0 and 1'),
    ('--mask-ratio 1', '--mask-ratio 1 must lie between 0 and 1'),
    ('--mask-ratio 1.5', '--mask-ratio 1.5 must lie between 0 and 1'),
    ('--mask-ratio nan', '--mask-ratio nan must lie between 0 and 1'),
    ('--mask-unit 24', 'one of 16, 32, 64'),
    ('--mask-unit 0', '--mask-unit 0'),
    ('--img-size 100', 'multiple of 16'),
    ('--img-size 1 2 3', 'height and width'),
    ('--mim-kwargs foo=1', 'its options are'),
    ('--mim-kwargs mask_ratio=0.5 --mask-ratio 0.4', 'given twice'),
    ('--mixup 0.2', '--mixup has no meaning with --mim'),
    ('--num-classes 10', '--num-classes has no meaning with --mim'),
    ('--smoothing 0.1', '--smoothing has no meaning with --mim'),
    ('--sched-on-updates', '--sched-on-updates has no meaning with --mim: schedules step at every update'),
    ('--kd-model-name resnet50', '--kd-model-name has no meaning with --mim'),
    ('--wandb-project x', '--wandb-project is for --log-wandb'),
    ('--mim-probe knn', '--mim-probe is for --mim-probe-dir'),
    ('--mim-probe-dir {places}/nowhere', 'there is no folder'),
    ('--mim-probe-dir {places}/images', 'two classes or more'),
    ('--mim-probe-dir {places}/images --mim-probe svm', "no 'svm'; choose knn, linear, attentive"),
    ('--in-chans 5', '--in-chans 5'),
    ('--input-img-mode L', 'the model takes 3'),
    ('--input-img-mode XYZ', "no mode 'XYZ'"),
    ('--opt adamww', "no 'adamww'; choose adamw"),
    ('--opt-kwargs foo=1', "'foo'"),
    ('--opt-betas 0.9', '--opt adamw'),
    ('--sched cos', "no 'cos'; choose cosine"),
    ('--device tpuu', "no 'tpuu'"),
    ('--batch-size 0', '--batch-size 0'),
    ('--lr -1', '--lr -1'),
    ('--scale 2 1', '--scale takes a range'),
    ('--hflip 3', '--hflip 3'),
    ('--interpolation foo', "--interpolation: there is no 'foo'"),
    ('--aa foo', 'foo'),
    ('--torchcompile foo', '--torchcompile foo'),
    ('--torchcompile-mode default', '--torchcompile-mode is for --torchcompile, which is not given'),
    ('--stop-epoch 5', '--stop-epoch 5'),
    ('--max-unreadable 2', '--max-unreadable 2 must lie between 0 and 1'),
    ('--recovery-interval -1', '--recovery-interval -1 must be 0 or more'),
    ('--resume auto --experiment ""', 'name the folder with --experiment'),
    ('--output {places}/file', 'cannot be written'),
    ('--output /proc/nowhere', 'cannot be written'),
    ('--output {places} --experiment old', 'already holds a run: continue it with --resume auto'),
    ('--resume {places}/nowhere.pth', 'there is no checkpoint'),
    ('--resume {places}/file', 'not a complete checkpoint'),
    ('-c {places}/unknown.yaml', "contains 'batchsize', which is not a flag; did you mean batch_size?"),
    ('-c {places}/list.yaml', 'flags by name'),
    ('-c {places}/nowhere.yaml', 'cannot be read'),
    ('-c {places}/binary.yaml', 'is not YAML'),
    ('--data-dir {places}/text.tar', 'cannot be read as a tar file'),
    ('--data-dir {places}/cut.tar', 'is truncated'),
    ('--data-dir {places}/half.tar', 'is truncated'),
    ('--data-dir {places}/nothing.tar', 'no image in'),
    ('--data-dir {places}/whole.tar --train-num-samples 3', '--train-num-samples is for --dataset'),
    ('--dataset images', "'images' must begin with hfds/"),
    ('--pretrained-path {places}/empty.pth', 'is empty'),
    ('--initial-checkpoint {places}/empty.pth', 'is empty'),
    ('--pretrained-path {places}/text.pth', "with --pretrained-path '"),
    ('--initial-checkpoint {places}/text.pth', "with --initial-checkpoint '"),
    ('--pretrained-path {places}/text.safetensors', "with --pretrained-path '"),
    ('--pretrained-path {places}/others.pth', 'these would stay random'),
    ('--pretrained-path {places}/partial.pth', 'for example blocks.1.norm1.weight: these would stay random'),
    ('--pretrained-path {places}/larger.pth', 'for example blocks.6.norm1.weight: it is of a larger model'),
    ('--initial-checkpoint {places}/others.pth', "with --initial-checkpoint '"),
    ('--pretrained-path {places}/flipped.pth', "flipped.pth' is damaged: Bad CRC-32"),
    ('--initial-checkpoint {places}/flipped.pth', "flipped.pth' is damaged: Bad CRC-32"),
    ('--seed -1', '--seed -1 must be 0 or more'),
    (f'--seed {2 ** 70}', 'less than 4294967296'),
    (f'--batch-size {10 ** 8}', 'the images of one batch take 4915 GB'),
    (f'--batch-size {10 ** 30}', '--batch-size 1e+30 is more than 2147483647'),
    (f'--epochs {10 ** 12}', '--epochs 1e+12 is more than'),
    ('--max-pixels -1', '--max-pixels -1 must be 0 or more'),
    ('--data-dir {places}/\udcff', "\\udcff' is not valid UTF-8"),
    ('--experiment \udcff', "--experiment: '\\udcff' is not valid UTF-8"),
    ('--mim-kwargs model_kwargs=3', 'model_kwargs: use --model-kwargs instead'),
    ('--mim-kwargs img_size=64', 'img_size: use --img-size instead'),
    ('--mim-kwargs decoder=3', ''),
    ('--mim mae --mim-kwargs decoder_dim=x', ''),
    ('--mim mae --mim-kwargs decoder_depth=[]', ''),
    ('--mim ijepa --mim-kwargs predictor_heads={{}}', ''),
]


@pytest.mark.parametrize('flags, message', CASES, ids=[flags for flags, _ in CASES])
def test_mistake(flags, message, train, places, tmp_path, capsys):
    before = sorted(places.rglob('*'))
    with pytest.raises(SystemExit) as stopped:
        train(f'--data-dir {places}/images --output {tmp_path}/output --experiment run --epochs 1 '
              + flags.format(places=places))
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if 'error:' in line]
    assert stopped.value.code == 2
    assert len(lines) == 1 and message in lines[0] and 'Traceback' not in error
    assert not (tmp_path / 'output').exists()
    assert sorted(places.rglob('*')) == before


def test_as_a_user_sees_it(places, tmp_path):
    command = [sys.executable, str(SCRIPT), '--mim', 'simmim', '--device', 'cpu', '--model', 'test_vit',
               '--data-dir', str(places / 'empty'), '--output', str(tmp_path / 'output')]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 2
    assert result.stdout == ''
    assert result.stderr.startswith('train.py: error: --data-dir: no image in') and result.stderr.count('\n') == 1
    assert not (tmp_path / 'output').exists()


def test_unknown_flag(script, monkeypatch):
    monkeypatch.setattr('sys.argv', ['train.py', '--mim', 'simmim', '--no-such-flag'])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2


def test_every_flag_works_or_is_refused(script):
    """None is accepted and then forgotten."""
    flags = {action.dest for action in script.parser._actions} - {'help', 'config', 'data'}
    assert flags == DEFAULTS.keys() | MEANINGLESS.keys() | UNSUPPORTED.keys()
    assert not DEFAULTS.keys() & (MEANINGLESS.keys() | UNSUPPORTED.keys())


def test_flags_of_timm_are_all_known(script):
    """The names that users of timm's script know, as of 1.0.31."""
    names = '''
        data-dir dataset train-split val-split train-num-samples val-num-samples dataset-download class-map
        input-img-mode input-key target-key dataset-trust-remote-code model pretrained pretrained-path
        initial-checkpoint resume no-resume-opt num-classes gp img-size in-chans input-size crop-pct mean std
        interpolation batch-size validation-batch-size channels-last fuser grad-accum-steps grad-checkpointing
        fast-norm model-kwargs head-init-scale head-init-bias torchcompile-mode torchscript torchcompile device amp
        amp-dtype model-dtype no-ddp-bb synchronize-step local_rank device-modules opt opt-eps opt-betas momentum
        weight-decay clip-grad clip-mode layer-decay layer-decay-min-scale layer-decay-no-opt-scale opt-kwargs sched
        sched-on-updates lr lr-base lr-base-size lr-base-scale lr-noise lr-noise-pct lr-noise-std lr-cycle-mul
        lr-cycle-decay lr-cycle-limit lr-k-decay warmup-lr min-lr epochs epoch-repeats start-epoch decay-milestones
        decay-epochs warmup-epochs warmup-prefix cooldown-epochs patience-epochs decay-rate no-aug train-crop-mode
        scale ratio hflip vflip color-jitter color-jitter-prob grayscale-prob gaussian-blur-prob aa aug-repeats
        aug-splits jsd-loss bce-loss bce-sum bce-target-thresh bce-pos-weight reprob remode recount resplit mixup
        cutmix cutmix-minmax mixup-prob mixup-switch-prob mixup-mode mixup-off-epoch smoothing train-interpolation
        drop drop-connect drop-path drop-block bn-momentum bn-eps sync-bn dist-bn split-bn model-ema
        model-ema-force-cpu model-ema-decay model-ema-warmup seed worker-seeding log-interval val-interval
        recovery-interval checkpoint-hist workers save-images pin-mem no-prefetcher output experiment eval-metric tta
        use-multi-epochs-loader log-wandb wandb-project wandb-tags wandb-resume-id train-img-sizes train-batch-sizes
        train-size-probs train-size-schedule train-size-schedule-spread train-size-random-mix train-batches-per-epoch
        variable-batch-loss-scale naflex-loader naflex-train-seq-lens naflex-max-seq-len naflex-patch-sizes
        naflex-patch-size-probs naflex-loss-scale naflex-patchify-channels-first kd-model-name kd-distill-type
        kd-loss-type distill-loss-weight task-loss-weight kd-temperature kd-student-feature-dim kd-teacher-feature-dim
        kd-token-distill-type task loss stop-epoch save-epochs multilabel-threshold target-format
    '''.split()
    known = {option for action in script.parser._actions for option in action.option_strings}
    assert not {f'--{name}' for name in names} - known
