"""Pre-training by masked image modeling, as a training script runs it.

`python -m timm.mim.pretrain` is the program. A script of one's own needs two calls: `add_arguments(parser)` for the
flags, and `run(args)` with the arguments that the user gave; `given_arguments(parser)` tells those where flags have
defaults.
Models, optimizers, schedules, checkpoints and readers are timm's, the task is in `timm.task`. In the order of a run:

- `flags/`, `given_arguments`, `options`, `defaults`, `recipes`, `option_checks`, `refused_flags`: what the user wants
- `place`: the device, and the rank among the processes
- `data/`: the images, their order and augmentation
- `build_method`: the model and the method around it
- `task`, `sharding`: what is trained, on one device or over many
- `trainer`: the updates; their parts are `optimizer`, `schedules`, `precision`, `step_guard`, `means`, `stop_signal`
- `held_out`, `baselines`, `probes/`: what was learned
- `run_folder`, `folder_lock`, `checkpoints`, `encoder_files`, `files`: what a run leaves behind
- `resume`, `resume_options`: how it goes on from there
- `reporting/`: what it says and writes down on the way
- `run_loop`, `main`: all of it, and `exit_codes`: how it ends
- `validate`: a checkpoint measured again
"""
from .flags import add_arguments as add_arguments
from .given_arguments import given_arguments as given_arguments
from .main import run as run
