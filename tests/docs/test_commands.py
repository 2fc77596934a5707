"""Every command in the documentation runs, and leaves what the documentation says."""
import csv
import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec

import pytest
import safetensors.torch
from PIL import Image

import timm.mim
from commands import documented_commands
from pages import ROOT
from reader import Reader
from small_commands import value_of

# Commands that do not run here, why, and where what they do is run
ELSEWHERE = {
    'make test': 'this suite',
    'make test-all': 'this suite, on all models',
    'make test ARGS=tests/mim': 'this suite',
    'pytest tests/train/test_supervised_arguments.py': 'this suite: tests/train/test_supervised_arguments.py',
    'pytest tests/mim/test_native_aspect.py': 'this suite: tests/mim/test_native_aspect.py',
    'pytest tests/train/test_naflex_run.py': 'this suite: tests/train/test_naflex_run.py',
    'pytest -m cuda': 'needs a CUDA device: tests/equivalence/test_cuda.py',
    'make cuda': 'needs a CUDA device; on the CPU: tests/benchmarks/test_gpu.py',
    'python -m benchmarks.digits': 'takes half an hour of processor time; the recipe itself is make pretrain',
    'python -m benchmarks.continued':
        'takes a quarter of an hour: tests/benchmarks/test_whole_runs.py, tests/train/test_probe_run.py',
    'python -m benchmarks.sample_methods': 'takes a quarter of an hour; it runs train.py like other commands here',
    'make benchmark': 'takes minutes; the parts: tests/benchmarks/test_benchmarks.py',
    'python -m pytest --all-models tests/mim/test_every_model.py': 'takes hours',
    'python -m benchmarks.cross': 'takes minutes; its parts are the options of MAE in tests/mim/test_cross_decoder.py',
    'python -m benchmarks.leak ratio pvt_v2_b0 mobilenetv3_small_050': 'tests/benchmarks/test_leak.py',
    'python -m benchmarks.leak squares --model mobilenetv3_small_050': 'takes minutes: tests/benchmarks/test_leak.py',
    'python -m benchmarks.masked': 'takes minutes: tests/benchmarks/test_masked.py',
    'python -m benchmarks.latent --batch-size 2 --rounds 2': 'takes a minute: tests/benchmarks/test_masked.py',
    'python -m benchmarks.masked resnet50 --decoder-dims 768 192 128':
        'takes minutes: tests/benchmarks/test_masked.py',
    'python examples/digits_resnet.py': 'takes minutes: tests/benchmarks/test_masked.py',
    'python -m benchmarks.native_aspect error OWN SQUARES':
        'needs two trained runs: tests/benchmarks/test_native_aspect_benchmark.py',
    'python -m timm.mim.convert output/pretrain/my_run/last.dcp encoder.safetensors --to encoder':
        'needs a run that writes folders: tests/train/test_faults_killed.py::test_folders_hold_what_files_do',
    'python -m benchmarks.saving --model vit_large_patch16_224 --rounds 3':
        'takes minutes: tests/train/test_checkpoint_folder.py::test_benchmark',
    'python -m benchmarks.plan': 'takes minutes; small cases: tests/train/test_plan.py::test_memory_is_that_of_a_run',
    'python -m benchmarks.native_aspect padding': 'tests/benchmarks/test_native_aspect_benchmark.py',
    'python -m benchmarks.native_aspect speed': 'tests/benchmarks/test_native_aspect_benchmark.py',
    'make upstream-tests': 'takes hours; a sample: tests/upstream/test_upstream_sample.py::test_sample',
    'python tests/upstream/run_scripts.py': 'tests/train/test_supervised_upstream.py::test_scripts',
    'pip install git+URL-of-this-repository':
        'no address; from a folder: tests/patchset/test_packaging.py::test_install_from_git',
    'pip install git+file:///path/to/a/clone': 'tests/patchset/test_packaging.py::test_install_from_git',
    "pip install '.[samples]'":
        'fetches packages; timm itself: tests/patchset/test_packaging.py::test_pip_wheel',
    'python -m patchset series CLONE -o DIR':
        'needs a clone of upstream: tests/patchset/test_series.py::test_series_gives_the_woven_tree_and_nothing_else',
    'git am --3way': 'tests/patchset/test_series.py::test_series_gives_the_woven_tree_and_nothing_else',
    'python -m timm.mim.pretrain -c continue_data2vec --model vit_small_patch16_224 --data-dir IMAGES '
    '--mim-probe-dir LABELLED':
        'fetches weights; with those of a file: tests/train/test_probe_run.py::test_best_epoch_by_a_probe',
    'python train.py --mim mae --pretrained --model vit_small_patch16_224 --lr-base 1e-4 --layer-decay 0.65 '
    '--data-dir IMAGES --mim-probe-dir LABELLED --mim-probe-interval 1 --mim-probe-best':
        'fetches weights; with those of a file: tests/train/test_probe_run.py::test_best_epoch_by_a_probe',
    'pip install -U timm': 'replaces the fork, as the page says',
    'pip install -U': 'the same',
    'pip install -e .': 'tests/patchset/test_packaging.py',
    'python -m patchset upgrade VERSION':
        'fetches a release: tests/patchset/test_upgrade.py::test_change_of_the_moved_part_is_carried_and_back',
    'python train.py --mim mae --data-dir BANDS --model vit_small_patch16_224 --in-chans 13 --mim-bands 4 3 2':
        'tests/train/test_bands.py::test_from_pretraining_to_validation',
    'python train.py --mim mae --dataset wds/ --data-dir SHARDS --model vit_small_patch16_224':
        'tests/train/test_streams.py::test_from_a_tar_stream_to_a_fine_tuned_model',
    'python train.py --mim mae --dataset hfids/ACCOUNT/NAME --train-num-samples 100000 --model vit_small_patch16_224':
        'tests/train/test_streams.py::test_from_a_streaming_dataset_to_a_fine_tuned_model',
    'torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint first-machine:29400 '
    '-m timm.mim.pretrain -c mae_vit_large_patch16 --data-dir IMAGES --experiment long_run --recovery-interval 500 '
    '--resume auto': 'needs four machines: tests/train/test_faults_lost.py::test_machine_is_lost',
    'sbatch examples/slurm.sh -c mae_vit_large_patch16 --data-dir IMAGES --recovery-interval 500':
        'needs Slurm: tests/train/test_faults_lost.py::test_slurm_until_done',
    'python -m timm.mim.prepare IMAGES OUT --short-side 256': 'tests/train/test_prepare.py',
    'pip install tifffile imagecodecs': 'fetches packages',
    'pip install simplejpeg': 'fetches packages',
    'pip install webdataset': 'fetches packages',
    "make benchmark ARGS='--only loading'": 'takes a minute; the part: tests/benchmarks/test_benchmarks.py',
    # no commands, but forms of some
    'torchrun --nproc-per-node 8 train.py ...': 'whole ones are in blocks of code',
    'python -m timm.mim.convert': 'whole ones are in blocks of code',
    'python -m timm.mim.pretrain': 'whole ones are in blocks of code',
    "python -m timm.mim.convert SOURCE DEST '[--to' 'FORMAT]'": 'whole ones are in blocks of code',
    "python -m patchset build '|' check '|' lock '|' diff '|' series '|' upgrade": 'tests/patchset/test_project.py',
}
COMMANDS = [command for command in documented_commands() if list(command.words) not in map(shlex.split, ELSEWHERE)]

# Programs run inside of this one
pytestmark = pytest.mark.filterwarnings('ignore:.*found in sys.modules', 'ignore:Unable to enable fault handler')

RUN_FILES = (
    'encoder.safetensors', 'encoder/config.json', 'encoder/model.safetensors', 'last.pth.tar', 'summary.csv',
    'metrics.jsonl', 'report.html', 'train.log', 'args.yaml', 'summary.json')


@pytest.fixture(scope='session')
def reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp('reader'))


@pytest.mark.xdist_group('documented_commands')
@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: f'{command.place}-{command}')
def test_command(command, reader):
    if command.words[0] == 'make' and not shutil.which('make'):
        pytest.skip('needs make')
    if 'demo' in str(command) or 'digits.py' in str(command):
        pytest.importorskip('matplotlib')
    outcome = reader.run(command.words)
    for start, check in PROMISES.items():
        if str(command).startswith(start):
            check(reader.folder, outcome)
            return
    pytest.fail('nothing says what it should leave, and it is not in ELSEWHERE')


def check_train(folder, outcome):
    if '--plan' in outcome.words:
        assert outcome.output.startswith('Plan of ') and 'images per process fit' in outcome.output
        return
    if '--mim' not in outcome.words and '-c' not in outcome.words:
        return check_supervised(folder / 'output' / 'train' / outcome.experiment)
    run = folder / 'output' / 'pretrain' / outcome.experiment
    assert [name for name in RUN_FILES if not (run / name).is_file()] == []
    pictures = [*run.glob('reconstructions/*.png'), *([run / 'curves.png'] if find_spec('matplotlib') else [])]
    for picture in pictures:
        Image.open(picture).verify()
    results = json.loads((run / 'summary.json').read_text())
    if '--mim-probe-dir' in outcome.words:
        probes = ['attentive'] if 'attentive' in outcome.words else ['knn', 'linear']
        assert [any(probe in name for name in results['probes']) for probe in probes] == [True] * len(probes)


def check_supervised(run):
    assert (run / 'model_best.pth.tar').is_file() and (run / 'args.yaml').is_file()
    with open(run / 'summary.csv', newline='') as file:
        assert len(list(csv.DictReader(file))) == 1


def check_validate(folder, outcome):
    results = json.loads(outcome.output.split('--result\n')[1])
    if '--mim' not in outcome.words:
        assert 0 <= results['top1'] <= 100
        return
    assert results['masked_l1'] > 0 and results['mean_of_visible'] > 0
    if '--mim-pictures' in outcome.words:
        Image.open(folder / value_of(outcome.words, '--mim-pictures')).verify()
    assert any('knn' in name for name in results) == ('--mim-probe-dir' in outcome.words)


def check_convert(folder, outcome):
    """It prints Python that loads what it wrote, but for formats of others and of training."""
    assert (folder / outcome.words[4]).exists()
    if value_of(outcome.words, '--to') in ('', 'mim', 'encoder', 'target-encoder'):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            namespace = dict(timm=timm, safetensors=safetensors)
            lines = [line.strip() for line in outcome.output.splitlines()[1:] if not line.startswith('note: ')]
            exec('\n'.join(lines), namespace)


def check_coverage(folder, outcome):
    """The page has its sums."""
    page = (ROOT / 'docs' / 'equality.md').read_text()
    for kind, name in (('transformer', 'transformer'), ('hybrid', 'hybrid'), ('token', 'token mixers'),
                       ('cnn', 'convolutional')):
        numbers = re.search(rf'^{kind} +in all +(.*)$', outcome.output, re.MULTILINE)[1].split()
        assert f'| {name} | {" | ".join(numbers)} |' in page


def check_demo(folder, outcome):
    Image.open(folder / 'output' / 'demo' / 'accuracy.png').verify()
    assert '| labels per class | 2 | 5 | 20 |' in outcome.output


def check_stats(folder, outcome):
    assert json.loads((folder / 'stats.json').read_text())['pos_counts'] == [2] * 10


def check_build(folder, outcome):
    assert 'woven' in outcome.output


def check_diff(folder, outcome):
    assert outcome.output.startswith('diff --git')


PROMISES = {
    'python train.py': check_train,
    'python -m timm.mim.pretrain': check_train,
    'torchrun': check_train,
    'python validate.py': check_validate,
    'python -m timm.mim.convert': check_convert,
    'python class_weights.py': check_stats,
    'python tests/equivalence/coverage.py': check_coverage,
    'python examples/digits.py': check_demo,
    'make demo': check_demo,
    'python -m patchset build': check_build,
    'make diff': check_diff,
    'make pretrain': check_train,
}


@pytest.mark.xdist_group('documented_commands')
@pytest.mark.parametrize('line', [
    'python train.py --mim simmim --data-dir IMAGES --model vit_tiny_patch16_224 --maskratio 0.5',
    'python train.py --mim mae --data-dir IMAGES --model resnet50',
    'python train.py --mim mae --data-dir IMAGES --model vit_tiny_patch16_224 --mim-kwargs depth=2',
    'python train.py --mim simmim --data-dir NOWHERE --model vit_tiny_patch16_224',
    'python validate.py --mim mae --checkpoint mae_visualize_vit_base.pth',
    'python -m timm.mim.convert mae_visualize_vit_base.pth a.safetensors --to encoders',
    'torchrun --nproc-per-nodes 8 train.py --mim mae',
    'make pretraining',
])
def test_mistakes_are_found(line, reader):
    with pytest.raises((SystemExit, subprocess.CalledProcessError)) as error:
        reader.run(tuple(shlex.split(line)))
    assert getattr(error.value, 'code', 2) == 2


def test_table_of_others():
    """It lists nothing that is documented no more, and points to tests that exist."""
    documented = [list(command.words) for command in documented_commands()]
    assert [line for line in ELSEWHERE if shlex.split(line) not in documented] == []
    for reason in ELSEWHERE.values():
        for file, test in re.findall(r'(tests/[\w/]+\.py)(?:::(\w+))?', reason):
            assert f'def {test}(' in (ROOT / file).read_text() if test else (ROOT / file).is_file(), reason
