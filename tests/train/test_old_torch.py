"""A PyTorch that upstream's script still runs with, and pre-training does not."""
from argparse import Namespace

import pytest
import torch

from timm.mim.pretrain import run


def test_old_torch_is_refused_by_name(monkeypatch, capsys):
    monkeypatch.delattr(torch, 'compiler', raising=False)
    with pytest.raises(SystemExit) as exit_:
        run(Namespace(mim='simmim'))
    assert exit_.value.code == 2
    assert 'PyTorch 2.1' in capsys.readouterr().err
