"""Supervised training and evaluation for `train.py` and `validate.py`, built from timm's parts.

This package lies beside the scripts and is not part of the installed timm. Its modules, in the order of a run:

- `flags`, `validation_flags`, `shared_flags`: the flags of `train.py`, of `validate.py`, and of both
- `definitions`: imports the flags of pre-training
- `config`, `arguments`: complete and check the user's arguments
- `device`: device and precision
- `model`, `datasets`, `loaders`, `objective`, `schedule`: the parts of a run
- `supervised`, `epoch`, `run_folder`: training
- `validation`, `bulk_validation`, `evaluation`: evaluation of one model, of several models, and on one loader
- `class_counts`: the program of `class_weights.py`
- `errors`: errors of timm and PyTorch that are the user's mistakes
"""
import sys
from importlib.util import find_spec

_timm = find_spec('timm')
if _timm is None or _timm.origin is None:  # a clone holds a folder of that name, which no build has filled
    print('error: timm is not built here: run `make`, or `pip install -e .` in this clone', file=sys.stderr)
    raise SystemExit(2)
