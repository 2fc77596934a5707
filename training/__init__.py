"""Supervised training, as `train.py` and `validate.py` run it: timm's parts, put together one purpose per module.

A plain package beside the scripts, not a part of the installed timm. In the order of a run:

- `flags`, `validation_flags`, `shared_flags`: the flags of `train.py`, of `validate.py`, and those of both
- `config`, `arguments`: what the user gave, completed and checked
- `device`: where and in which precision
- `model`, `datasets`, `loaders`, `objective`, `schedule`: what a run is made of
- `supervised`, `epoch`, `run_folder`: training
- `validation`, `bulk_validation`, `evaluation`: evaluation of one model or of several, and of a model on a loader
- `class_counts`: `class_weights.py`
"""
import sys
from importlib.util import find_spec

_timm = find_spec('timm')
if _timm is None or _timm.origin is None:  # a clone holds a folder of that name, which no build has filled
    print('error: timm is not built here: run `make`, or `pip install -e .` in this clone', file=sys.stderr)
    raise SystemExit(2)
