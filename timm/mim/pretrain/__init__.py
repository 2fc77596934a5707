"""Pre-training by masked image modeling, as a training script runs it.

A script needs two calls: `add_arguments(parser)` for the flags, and `run(args)` with the arguments that the user gave;
`given_arguments(parser)` tells those where flags have defaults.
Models, optimizers, schedules, checkpoints and readers are timm's, the task is in `timm.task`. In the order of a run:

- `flags`, `given_arguments`, `options`, `recipes`, `refused_flags`: what the user asks for
- `datasets`, `loading`, `sample_photographs`: the images, their order and augmentation
- `build_method`: the model and the method around it
- `trainer`, `step_guard`, `stop_signal`: the updates, and when they end
- `held_out`, `baselines`, `probes` and its parts, `validate`: what was learned
- `checkpoints`, `records`, `curves`, `report`, `encoder_files`, `run_folder`: what a run leaves behind
- `progress`, `summary`, `log_file`, `trackers`: what it says, and to whom
- `main`: all of it
"""
from .flags import add_arguments as add_arguments
from .given_arguments import given_arguments as given_arguments
from .main import run as run
