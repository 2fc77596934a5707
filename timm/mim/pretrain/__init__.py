"""Pre-training by masked image modeling, as a training script runs it.

A script needs two calls: `add_arguments(parser)` for the flags, and `run(args)` with the arguments that the user gave;
`given_arguments(parser)` tells those where flags have defaults.
Models, optimizers, schedules, checkpoints and readers are timm's, the task is in `timm.task`. In the order of a run:

- `flags`, `given_arguments`, `options`, `recipes`, `refused_flags`: what the user asks for
- `data/`: the images, their order and augmentation
- `build_method`: the model and the method around it
- `trainer`, `optimizer`, `sharding`, `step_guard`, `stop_signal`: the updates, and when they end
- `held_out`, `baselines`, `probes/`, `validate`: what was learned
- `run_folder`, `checkpoints`, `encoder_files`, `files`: what a run leaves behind
- `reporting/`: what it says and writes down on the way
- `main`: all of it
"""
from .flags import add_arguments as add_arguments
from .given_arguments import given_arguments as given_arguments
from .main import run as run
