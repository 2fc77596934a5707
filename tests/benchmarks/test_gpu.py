"""`make cuda`, as far as it can be tried without a GPU: the same jobs on tiny models, slices, and the table."""
import json

import pytest
import torch

pytest.importorskip('transformers')
pytest.importorskip('lightly')

from benchmarks.gpu import loader, proof, throughput, training_steps  # noqa: E402
from benchmarks.gpu.__main__ import main  # noqa: E402
from benchmarks.gpu.slices import Job, Results, Unfit, run_slice  # noqa: E402
from benchmarks.gpu.table import to_markdown  # noqa: E402

CPU = torch.device('cpu')


@pytest.mark.parametrize('job', [
    pytest.param(job, id=f'{job.section}-{job.name}'.replace(' ', '_')) for job in
    [*training_steps.jobs(CPU), *throughput.jobs(CPU), *loader.jobs(CPU)]])
def test_job(job):
    assert all(value == value for value in job.run().values())  # no NaN


@pytest.fixture
def stock(monkeypatch):
    """A process of stock timm that answers what the fork computes, and is told to be wrong."""
    class Stock:
        wrong = {}

        def ask(self, function, **arguments):
            self.arguments = arguments

        def answer(self):
            import probe
            return {**probe.values(**self.arguments), **self.wrong}
    process = Stock()
    monkeypatch.setattr(proof, 'stock', lambda: process)
    return process


def test_proof_fails_on_one_value(stock):
    job = proof.jobs('cpu')['smallest'][0]
    measured = job.run()
    assert measured['values'] > 10 and measured['unrepeatable_gradients'] == 0
    stock.wrong = {'train random state': 'another'}
    with pytest.raises(AssertionError, match='1 values differ, first train random state'):
        job.run()


def test_every_served_model_is_a_job_once():
    from registry import served
    found = proof.jobs('cuda')
    names = [job.name for job in [*found['smallest'], *found['others']]]
    assert sorted(names) == sorted(entry.name for entry in served())
    assert len(found['smallest']) == len({entry.class_name for entry in served()})


def fails():
    raise ValueError('wrong\nin two lines')


def does_not_fit():
    raise Unfit('too large')


def test_slices_go_on_where_the_last_one_stopped(tmp_path, capsys):
    ran = []
    jobs = [Job('a', name, lambda name=name: ran.append(name) or dict(rate=1.5)) for name in ('one', 'two', 'three')]
    jobs += [Job('b', 'four', fails), Job('b', 'five', does_not_fit)]
    file = tmp_path / 'results.jsonl'
    assert run_slice(jobs, Results(file), 0, CPU) == 5 and ran == []
    assert run_slice(jobs[:2], Results(file), 9, CPU) == 0
    Results(file).add(jobs[2], 'started')  # the process was killed in it
    with open(file, 'a') as half:
        half.write('{"section": "a", "job": "thr')
    assert [job.name for job in Results(file).pending(jobs)] == ['four', 'five', 'three']
    assert run_slice(jobs, Results(file), 9, CPU) == 0 and ran == ['one', 'two', 'three']
    outcomes = {record['job']: record['outcome'] for record in Results(file).ended()}
    assert outcomes == dict(one='passed', two='passed', three='passed', four='failed', five='skipped')
    table = to_markdown(dict(gpu='none'), Results(file).ended(), dict(a=7))
    assert '| a | 3 | 0 | 0 | 7 |' in table and '| b | 0 | 1 | 1 | 0 |' in table
    assert '| four | failed | ValueError: wrong |' in table and '| one | passed | 1.5 |  |' in table


def test_a_job_that_takes_the_process_down_is_given_up(tmp_path):
    job, file = Job('a', 'one', dict), tmp_path / 'results.jsonl'
    for _ in range(2):
        assert Results(file).pending([job]) == [job]
        Results(file).add(job, 'started')
    assert Results(file).pending([job]) == []
    assert Results(file).ended()[0]['outcome'] == 'failed'


def test_command(tmp_path, monkeypatch, capsys, stock):
    arguments = ['--device', 'cpu', '--results', str(tmp_path), '--only', 'proof 3']
    assert main([*arguments, '--minutes', '0']) == 0
    assert '2 jobs are left' in capsys.readouterr().out
    assert main(arguments) == 0
    assert len([json.loads(line) for line in (tmp_path / 'results.jsonl').read_text().splitlines()]) == 4
    assert main([*arguments, '--table']) == 0
    assert '| proof 3 | 2 | 0 | 0 | 0 |' in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert main(['--results', str(tmp_path)]) == 2
        assert 'no CUDA device' in capsys.readouterr().err
