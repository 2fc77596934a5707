"""Random damage to checkpoints of runs: one line, or a checkpoint; no code is run, and nothing is written.

2,000 seeds and not 150 with --all-models.
"""
import argparse
import os
import random
import sys
from pathlib import Path

import torch
from run_folders import equal

from timm.mim.pretrain.checkpoints import load_checkpoint, newest_checkpoint
from timm.mim.pretrain.errors import UserError

sys.path.append(str(Path(__file__).parents[1] / 'mim'))
from mutations import RunsCode, damaged, damaged_bytes  # noqa: E402


def checkpoint():
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(8, 8, generator=generator) for name in ('norm.weight', 'blocks.0.attn.qkv.weight')}
    state = {0: dict(step=torch.tensor(3.), exp_avg=torch.zeros(8, 8), exp_avg_sq=torch.zeros(8, 8))}
    return dict(
        epoch=1, arch='test_vit', version=2, metric=0.5, state_dict=weights,
        task_state=dict(method={'mask_token': torch.zeros(1, 1, 8)}),
        optimizer=dict(state=state, param_groups=[dict(lr=1e-3, params=[0])]),
        args=argparse.Namespace(mim='simmim', model='test_vit', lr=1e-3),
        run=dict(update=6, updates_per_epoch=3, images_per_update=4, means={}),
        saver=dict(pending=(None, None)),
    )


def test_damaged_checkpoints(tmp_path, request):
    whole = checkpoint()
    path = tmp_path / 'last.pth.tar'
    seeds = range(2000 if request.config.getoption('--all-models', False) else 150)
    refused = 0
    for seed in seeds:
        rng = random.Random(seed)
        content = dict(whole, extra=RunsCode(tmp_path / 'ran')) if rng.random() < 0.1 else whole
        content = damaged(content, rng) if rng.random() < 0.5 else content
        has_checksums = rng.random() < 0.8
        torch.save(content, path, _use_new_zipfile_serialization=has_checksums)
        if rng.random() < 0.6:
            path.write_bytes(damaged_bytes(path.read_bytes(), rng))
        written = path.read_bytes()
        for read in (lambda: load_checkpoint(path), lambda: newest_checkpoint(tmp_path)):
            try:
                found = read()
                assert found.update >= 0 or found.run is None, seed
                if content is whole and has_checksums:
                    assert equal(found.content['state_dict'], whole['state_dict']), seed
            except UserError as error:
                refused += 1
                assert '\n' not in str(error) and str(path.parent) in str(error), seed
        assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == written, seed
    assert len(seeds) / 2 < refused < 2 * len(seeds)


def test_pickle_that_runs_code(tmp_path):
    for legacy in (False, True):
        path = tmp_path / 'last.pth.tar'
        content = dict(checkpoint(), extra=RunsCode(tmp_path / 'ran'))
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        try:
            load_checkpoint(path)
        except UserError as error:
            assert 'not a complete checkpoint' in str(error) and '\n' not in str(error)
        else:
            raise AssertionError('it was loaded')
        assert os.listdir(tmp_path) == [path.name]
