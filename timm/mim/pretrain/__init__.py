"""Pre-training by masked image modeling, as a training script runs it.

`python -m timm.mim.pretrain` is the program. A script of one's own needs two calls: `add_arguments(parser)` for the
flags, and `run(args)` with the arguments that the user gave; `given_arguments(parser)` tells those where flags have
defaults.
Models, optimizers, schedules, checkpoints and readers are timm's; the task is in `timm.task`. In the order of a run:

- `flags/`, `options`: what the user asks for, with the `recipes` of the authors of the methods
- `data/`: the images, their order and their augmentation
- `task`, `sharding`: what is trained, on one device or sharded over many
- `trainer`: the updates
- `held_out`, `probes/`: measure what was learned
- `run_folder`, `checkpoints`, `encoder_files`: what a run writes
- `resume`: how a run goes on from a checkpoint
- `reporting/`: what a run prints and records
- `run_loop`: the whole run, and `errors`: how it ends
- `validate`: measures a checkpoint again
"""
from . import flags as flags
from .flags import add_arguments as add_arguments
from .options import given_arguments as given_arguments
from .run_loop import run as run
