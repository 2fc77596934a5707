"""Pre-train an image model by masked image modeling.

The program is `python -m timm.mim.pretrain`. Your own training script needs two calls: `add_arguments(parser)` adds the
flags, and `run(args)` pre-trains with the arguments that the user gave. If the parser sets defaults, call
`given_arguments(parser)` to get the arguments without them.

Models, optimizers, schedules, checkpoints and dataset readers are timm's; the training task is in `timm.task`. The
modules, in the order of a run:

- `flags/`, `options`, `recipes`: the user's options, the defaults of each method, and their checks
- `plan`: what a run costs, computed before it starts
- `processes`: the device and the rank of this process
- `data/`: the images, their order and their augmentation
- `task`, `optimizers`: the model, the optimizers and the schedules
- `building`, `blocks`, `sharding`: models that outgrow memory, compiled, recomputed and sharded block by block
- `trainer`, `step`, `naflex_update`: the training updates, and the parts of one
- `hold_out`, `held_out`, `naflex_held_out`, `probes/`: loading the held-out images, and evaluation
- `run_folder`, `run_saver`, `encoder_files`: the files that a run writes
- `checkpoints`, `resume`: finding and loading checkpoints, and resuming from one
- `reporting/`: console output, logs, curves and pictures
- `run_loop`: the whole run
- `errors`: errors, signals and exit codes
- `validate`: evaluation of a checkpoint
"""
from . import flags as flags
from .flags import add_arguments as add_arguments
from .options import given_arguments as given_arguments
from .run_loop import run as run
