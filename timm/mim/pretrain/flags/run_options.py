"""Every option of a pre-training run, in one table.

A field says all there is to say about an option: name, type, default, help, allowed values, and what happens to a
change of it when a run resumes. Parsers, defaults, checks, configuration files and the rules for resuming are made from
the fields, so a new option is added here and used where it takes effect, and nowhere else.

The authors of a method have their own values for some options: see `timm.mim.pretrain.recipes`.
"""
import dataclasses
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

from .parser import OneOrTwo

METHODS = ('simmim', 'mae', 'ijepa', 'data2vec', 'capi', 'spark', 'fcmae')

# Which numbers an option allows
ONE_OR_MORE = 'be 1 or more'
ZERO_OR_MORE = 'be 0 or more'
POSITIVE = 'be a positive number'
SHARE = 'lie between 0 and 1'

# What happens to an option that is changed when a run resumes from a checkpoint
TAKES_EFFECT = 'takes effect from the checkpoint on'
SAME = 'refused: it decides what is learned, or what is measured'
SAME_OPTIMIZER = 'refused unless --no-resume-opt: the state of the optimizer was made with it'
SAME_WITHIN_EPOCH = 'refused within an epoch, in which it decides which image is seen when'
BEGINNING = 'refused: it decides how a run begins'

Size = Union[int, List[int]]  # one number, or height and width

_INTERPOLATIONS = ('', 'random', 'nearest', 'bilinear', 'bicubic', 'lanczos')  # '' for that of the model


def option(
        default: Any,
        metavar: Optional[str],
        help: str,
        *,
        also: Sequence[str] = (),
        allowed: Optional[str] = None,
        choices: Sequence[str] = (),
        resume: str = TAKES_EFFECT,
        **parsing: Any,
) -> Any:
    """Define an option. Its type is the annotation of the field.

    Args:
        default: Value of a run for which neither the user nor the recipe of the method says anything.
        metavar: What stands for the value in the help.
        help: One sentence for `--help`.
        also: Other spellings of the flag.
        allowed: Which numbers are allowed.
        choices: Which words are allowed.
        resume: What happens to a change when a run resumes.
        **parsing: Arguments of `argparse.ArgumentParser.add_argument`, where the type does not decide them.
    """
    metadata = dict(
        metavar=metavar, help=help, also=tuple(also), allowed=allowed, choices=tuple(choices), resume=resume,
        parsing=parsing)
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def switch(help: str, *, resume: str = TAKES_EFFECT) -> Any:
    """Define an option that is off unless its flag is given."""
    return option(False, None, help, resume=resume)


@dataclass
class DatasetOptions:
    """Dataset"""
    data_dir: Optional[str] = option(None, 'DIR', 'folder of the data')
    dataset: str = option(
        '', 'NAME', 'dataset as <type>/<name> (default: the folder or tar file of images that --data-dir names)')
    dataset_download: bool = switch('allow timm to download torch/ and tfds/ datasets')
    dataset_trust_remote_code: bool = switch('allow a dataset of the Hugging Face hub to run its own code')
    input_key: Optional[str] = option(None, 'KEY', 'key of the images in the dataset')
    input_img_mode: Optional[str] = option(
        None, 'MODE',
        "PIL mode to read images in, or 'bands' for any number of bands in their own units (default: from the "
        'number of channels; bands for more than 4)',
        resume=SAME)
    exif_rotation: bool = switch('turn images as their EXIF orientation says', resume=SAME)
    target_key: Optional[str] = option(
        None, 'KEY', 'key of the labels, or a comma-separated list with one binary field per class')
    train_split: str = option('train', 'NAME', 'split to train on')
    val_split: Optional[str] = option(None, 'NAME', "split to evaluate on, '' for none")
    train_num_samples: Optional[int] = option(None, 'N', 'length of the training split, for streamed datasets')
    val_num_samples: Optional[int] = option(None, 'N', 'length of the validation split, for streamed datasets')


@dataclass
class ModelOptions:
    """Model"""
    model: str = option('vit_small_patch16_224', 'NAME', 'model to train', resume=SAME)
    pretrained: bool = switch('start from the published weights', resume=BEGINNING)
    pretrained_path: Optional[str] = option(
        None, 'FILE', 'start from the weights in this file; position embedding and head are resized to fit',
        resume=BEGINNING)
    initial_checkpoint: str = option(
        '', 'FILE', 'start from the weights in this file, which must fit exactly', resume=BEGINNING)
    resume: str = option('', 'FILE', "checkpoint to resume from; 'auto' takes the last one of --experiment")
    no_resume_opt: bool = switch('resume the weights only, and start with a new optimizer')
    img_size: Optional[Size] = option(None, 'N', 'image size, or height and width', action=OneOrTwo, resume=SAME)
    batch_size: int = option(128, 'N', 'images per process and step', also=('-b',), allowed=ONE_OR_MORE)
    validation_batch_size: Optional[int] = option(
        None, 'N', 'images per process and step in validation (default: --batch-size)',
        also=('-vb',), allowed=ONE_OR_MORE)
    grad_accum_steps: int = option(
        1, 'N', 'number of batches whose gradients are added up for one update', allowed=ONE_OR_MORE)
    grad_checkpointing: bool = switch('recompute activations in the backward pass, which saves memory')
    in_chans: Optional[int] = option(
        None, 'N', 'number of channels of an image (default: 3)', allowed=ONE_OR_MORE, resume=SAME)
    input_size: Optional[List[int]] = option(None, 'N', 'channels, height and width', nargs=3, resume=SAME)
    crop_pct: Optional[float] = option(
        None, 'X', 'fraction of an image that the center crop for validation keeps', allowed=SHARE, resume=SAME)
    mean: Optional[List[float]] = option(
        None, 'X', 'mean to normalise images with (default: of the model; measured for bands)', resume=SAME)
    std: Optional[List[float]] = option(
        None, 'X', 'standard deviation to normalise images with (default: of the model; measured for bands)',
        resume=SAME)
    interpolation: str = option('', 'NAME', 'how validation images are resized', choices=_INTERPOLATIONS, resume=SAME)
    channels_last: bool = switch('use the channels_last memory layout')
    fast_norm: bool = switch('run norm layers in low precision with --amp')
    model_kwargs: Dict[str, Any] = option({}, 'KEY=VALUE', 'arguments of the model', resume=SAME)
    torchcompile: Optional[str] = option(None, 'BACKEND', 'compile the model', nargs='?', const='inductor')
    torchcompile_mode: Optional[str] = option(None, 'MODE', 'mode of torch.compile')


@dataclass
class DeviceOptions:
    """Device"""
    amp: bool = switch('mixed precision')
    amp_dtype: str = option('bfloat16', 'TYPE', 'float16 or bfloat16', choices=('bfloat16', 'float16'))
    device: Optional[str] = option(None, 'NAME', 'device to train on; the accelerator if absent, else the CPU')
    no_ddp_bb: bool = switch('do not broadcast buffers from the first process to the others')
    synchronize_step: bool = switch('wait for the device after each update')
    device_modules: Optional[List[str]] = option(None, 'MODULE', 'modules to import for a device backend')


@dataclass
class OptimizerOptions:
    """Optimizer"""
    opt: str = option('adamw', 'NAME', 'optimizer', resume=SAME_OPTIMIZER)
    opt_eps: Optional[float] = option(None, 'X', 'epsilon of the optimizer', resume=SAME_OPTIMIZER)
    opt_betas: Optional[List[float]] = option(None, 'X', 'betas of the optimizer', resume=SAME_OPTIMIZER)
    momentum: float = option(0.9, 'X', 'momentum, for optimizers that have one', resume=SAME_OPTIMIZER)
    weight_decay: float = option(0.05, 'X', 'weight decay', allowed=ZERO_OR_MORE)
    clip_grad: Optional[float] = option(None, 'X', 'clip the gradient to this limit', allowed=ZERO_OR_MORE)
    clip_mode: str = option('norm', 'MODE', 'how to clip: norm, value or agc', choices=('norm', 'value', 'agc'))
    layer_decay: Optional[float] = option(
        None, 'X', 'learning rate of each layer divided by that of the layer above it', resume=SAME_OPTIMIZER)
    layer_decay_min_scale: float = option(
        0.0, 'X', 'smallest factor that --layer-decay may reach', resume=SAME_OPTIMIZER)
    layer_decay_no_opt_scale: Optional[float] = option(
        None, 'X', 'freeze layers whose factor of --layer-decay is below this', resume=SAME_OPTIMIZER)
    opt_kwargs: Dict[str, Any] = option({}, 'KEY=VALUE', 'arguments of the optimizer', resume=SAME_OPTIMIZER)


@dataclass
class ScheduleOptions:
    """Schedule"""
    lr: Optional[float] = option(None, 'X', 'learning rate; overrides --lr-base', allowed=POSITIVE)
    lr_base: float = option(1.5e-4, 'X', 'learning rate for --lr-base-size images per update', allowed=POSITIVE)
    lr_base_size: int = option(256, 'N', 'number of images per update that --lr-base is meant for', allowed=ONE_OR_MORE)
    lr_base_scale: str = option(
        'linear', 'HOW', 'how --lr-base grows with the images per update: linear or sqrt', choices=('linear', 'sqrt'))
    sched: str = option(
        'cosine', 'NAME',
        'cosine, tanh, step, multistep, poly, wsd, rsqrt, constant or none; training with labels also takes plateau',
        choices=('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'none'))
    epochs: int = option(300, 'N', 'epochs of the schedule', allowed=ONE_OR_MORE)
    epoch_repeats: float = option(0.0, 'N', 'passes over the images in one epoch', allowed=ZERO_OR_MORE)
    start_epoch: Optional[int] = option(
        None, 'N', 'epoch to begin with, whatever a checkpoint says', allowed=ZERO_OR_MORE, resume=BEGINNING)
    stop_epoch: Optional[int] = option(
        None, 'N', 'stop after this many epochs of the schedule of --epochs', allowed=ONE_OR_MORE)
    save_epochs: List[int] = option([], 'N', 'epochs whose checkpoints are never deleted')
    warmup_epochs: Optional[int] = option(None, 'N', 'epochs of warm-up', allowed=ZERO_OR_MORE)
    warmup_lr: float = option(0.0, 'X', 'learning rate at the start of warm-up')
    warmup_prefix: bool = switch('run the warm-up before --epochs, not as a part of it')
    min_lr: float = option(0.0, 'X', 'lowest learning rate')
    cooldown_epochs: int = option(0, 'N', 'epochs at the lowest learning rate at the end')
    decay_milestones: List[int] = option([90, 180, 270], 'N', 'epochs at which multistep lowers the learning rate')
    decay_epochs: Optional[float] = option(
        None, 'N',
        'epochs between two steps of step (default: 90), or length of the decay of wsd and rsqrt (default: a fifth)')
    decay_rate: float = option(0.1, 'X', 'factor on the learning rate at each step', also=('--dr',))
    lr_decay_fn: Optional[str] = option(None, 'NAME', 'curve of the decay of wsd and rsqrt')
    lr_stable_timescale: Optional[float] = option(None, 'N', 'time scale of rsqrt in epochs')
    lr_noise: Optional[List[float]] = option(None, 'X', 'fractions of the run between which the learning rate is noisy')
    lr_noise_pct: float = option(0.67, 'X', 'largest relative noise of the learning rate')
    lr_noise_std: float = option(1.0, 'X', 'standard deviation of the noise of the learning rate')
    lr_cycle_mul: float = option(1.0, 'X', 'length of each cycle divided by that of the one before')
    lr_cycle_decay: float = option(0.5, 'X', 'peak of each cycle divided by that of the one before')
    lr_cycle_limit: int = option(1, 'N', 'number of cycles')
    lr_k_decay: float = option(1.0, 'X', 'k of k-decay, for cosine and poly')


@dataclass
class AugmentationOptions:
    """Augmentation and regularisation"""
    no_aug: bool = switch('only resize and crop training images')
    train_crop_mode: Optional[str] = option(
        None, 'MODE', 'how training images are cropped: rrc, rkrc or rkrr', choices=('rrc', 'rkrc', 'rkrr'))
    scale: Optional[List[float]] = option(None, 'X', 'range of the area of random crops, as fractions of the image')
    ratio: Optional[List[float]] = option(None, 'X', 'range of the aspect ratio of random crops')
    hflip: float = option(0.5, 'P', 'probability of a horizontal flip', allowed=SHARE)
    vflip: float = option(0.0, 'P', 'probability of a vertical flip', allowed=SHARE)
    color_jitter: float = option(0.0, 'X', 'strength of colour jitter')
    color_jitter_prob: Optional[float] = option(None, 'P', 'probability of colour jitter', allowed=SHARE)
    grayscale_prob: float = option(0.0, 'P', 'probability that an image becomes grey', allowed=SHARE)
    gaussian_blur_prob: float = option(0.0, 'P', 'probability of Gaussian blur', allowed=SHARE)
    aa: Optional[str] = option(None, 'POLICY', 'AutoAugment or RandAugment policy, such as rand-m9-mstd0.5-inc1')
    train_interpolation: str = option('bicubic', 'NAME', 'how training images are resized', choices=_INTERPOLATIONS)
    drop_path: Optional[float] = option(None, 'RATE', 'rate of stochastic depth', allowed=SHARE)


@dataclass
class MovingAverageOptions:
    """Moving average"""
    model_ema: bool = switch('keep a moving average of the weights, and evaluate that')
    model_ema_decay: float = option(0.9998, 'X', 'decay of the average')
    model_ema_warmup: bool = switch('let the decay grow at the beginning of the run')


@dataclass
class MiscellaneousOptions:
    """Miscellaneous"""
    workers: int = option(4, 'N', 'number of processes that load images', also=('-j',), allowed=ZERO_OR_MORE)
    pin_mem: bool = switch('load images into pinned memory')
    seed: int = option(42, 'N', 'seed of weights, order and augmentation', resume=SAME_WITHIN_EPOCH)
    log_interval: int = option(50, 'N', 'updates between two reports', allowed=ONE_OR_MORE)
    val_interval: int = option(1, 'N', 'epochs between two evaluations and checkpoints', allowed=ONE_OR_MORE)
    recovery_interval: int = option(
        0, 'N', 'updates between two recovery checkpoints, 0 for none', allowed=ZERO_OR_MORE)
    checkpoint_hist: int = option(10, 'N', 'number of checkpoints to keep', allowed=ONE_OR_MORE)
    output: str = option('', 'DIR', 'folder in which run folders are made (default: ./output/train)')
    experiment: str = option('', 'NAME', 'name of the run folder (default: time, model and image size)')
    log_wandb: bool = switch('report to Weights & Biases')
    wandb_project: Optional[str] = option(None, 'NAME', 'project at Weights & Biases')
    wandb_tags: Optional[List[str]] = option(None, 'TAG', 'tags at Weights & Biases')
    wandb_resume_id: str = option('', 'ID', 'run at Weights & Biases to resume')


@dataclass
class NaFlexOptions:
    """NaFlex"""
    naflex_loader: bool = switch(
        'keep the aspect ratio of each image, as a sequence of patches, for NaFlex models', resume=SAME)
    naflex_max_seq_len: int = option(
        576, 'N', 'maximum number of patches per image in validation', allowed=ONE_OR_MORE, resume=SAME)
    naflex_train_seq_lens: List[int] = option(
        [128, 256, 576, 784, 1024], 'N',
        'sequence lengths in patches; each batch has one of them, and as many images as fit into --batch-size times '
        'the longest', resume=SAME)
    naflex_loss_scale: str = option(
        'none', 'HOW', 'how the loss is scaled with the number of images in its batch: none, sqrt or linear',
        choices=('none', 'sqrt', 'linear'))


@dataclass
class MaskedImageModelingOptions:
    """Masked image modeling"""
    mim: Optional[str] = option(
        None, 'METHOD', f'pre-train with this method: {", ".join(METHODS)}, or one that --mim-module registers',
        resume=SAME)
    mim_module: Optional[str] = option(
        None, 'FILE', 'Python file, or name of a module, that registers your own method or model')
    mask_ratio: Optional[float] = option(
        None, 'RATIO', 'fraction of the image that is masked (default: from the recipe of the method)', resume=SAME)
    mask_unit: Optional[List[int]] = option(
        None, 'N',
        'side of a masked square in pixels, or height and width (default: a patch for MAE and I-JEPA, otherwise the '
        'size nearest to 32 that fits the model)',
        resume=SAME)
    mim_kwargs: Dict[str, Any] = option({}, 'KEY=VALUE', 'any option of the method', resume=SAME)
    weight_decay_end: Optional[float] = option(
        None, 'X',
        'weight decay at the end of training, reached along a cosine (default: --weight-decay)',
        allowed=ZERO_OR_MORE)
    grad_checkpointing_every: Optional[int] = option(
        None, 'N', 'recompute the activations of the first block and every N-th one after it only',
        allowed=ONE_OR_MORE)
    checkpoint_format: str = option(
        'auto', 'HOW', 'how checkpoints are written: file, folder (in parts and in the background), or auto, a folder '
        'from 10 GB on', choices=('auto', 'file', 'folder'))
    fsdp: bool = switch(
        'shard parameters, gradients and optimizer state over processes, for models that outgrow one device')
    fsdp_replicas: int = option(
        1, 'N',
        'shard over the processes of a group, and hold the same shards in N groups, such as one per machine',
        allowed=ONE_OR_MORE)
    fsdp_reshard: str = option(
        'always', 'WHEN',
        'free the gathered parameters of a block after its forward pass: always, or never, which takes more memory and '
        'a gather less',
        choices=('always', 'never'))
    fsdp_param_dtype: Optional[str] = option(
        None, 'TYPE',
        'type in which blocks gather their parameters and take their inputs: that of --amp-dtype (default: float32)',
        choices=('bfloat16', 'float16'))
    fsdp_reduce_dtype: str = option(
        'float32', 'TYPE', 'type in which processes average gradients: float32 or bfloat16',
        choices=('float32', 'bfloat16'))
    fsdp_build_dir: Optional[str] = option(
        None, 'DIR',
        'build the model in files of this folder before it is sharded, for models that outgrow main memory')
    max_unreadable: float = option(
        0.1, 'SHARE',
        'end the run if more than this fraction of the images of an epoch cannot be read (default: 0.1); up to there, '
        'other images take their place',
        allowed=SHARE)
    max_pixels: int = option(
        89_478_485, 'N',
        'count images with more pixels as unreadable; 0 for no limit. Decoding takes about 13 bytes of memory for each '
        'pixel (default: 89478485, 1.2 GB)',
        allowed=ZERO_OR_MORE)
    mim_probe_dir: Optional[str] = option(
        None, 'DIR',
        'labelled images to probe the encoder on: a folder for each class, or train/ and val/ with such folders')
    mim_probe: List[str] = option(
        ['knn', 'linear'], 'PROBE', 'probes to run: knn, linear, attentive (default: knn linear)')
    mim_probe_layers: List[str] = option(
        ['last'], 'LAYER',
        'layers to probe: numbers from 1 on, last or all; attentive always takes the last (default: last)')
    mim_probe_pool: str = option(
        'model', 'HOW',
        'pool features as the model does (model), or average them over patches (avg); SimMIM and I-JEPA do not train '
        'the class token (default: model)')
    mim_probe_interval: int = option(
        0, 'N', 'epochs between two probes, 0 for a single one at the end (default: 0)', allowed=ZERO_OR_MORE)
    mim_probe_best: bool = switch(
        'choose the best epoch by the first probe, not by the held-out error; the encoder before training takes part',
        resume=SAME)
    mim_bands: Optional[List[int]] = option(
        None, 'BAND',
        'bands that pictures show as red, green and blue, or one for grey, counted from 1 (default: the first three)')
    log_tensorboard: bool = switch('write event files for TensorBoard to the run folder')
    plan: Optional[int] = option(
        None, 'PROCESSES',
        'print the memory, the operations and the time that the run takes on this many processes (default: 1), and end '
        'without training',
        allowed=ONE_OR_MORE, nargs='?', const=1)


# In the order of `--help`
GROUPS = (
    DatasetOptions, ModelOptions, DeviceOptions, OptimizerOptions, ScheduleOptions, AugmentationOptions,
    MovingAverageOptions, MiscellaneousOptions, NaFlexOptions, MaskedImageModelingOptions,
)


@dataclass
class RunOptions(*reversed(GROUPS)):
    """All options of a run, with the general defaults.

    `timm.mim.pretrain.options.resolve_options` completes and checks what the user gave.
    """


FIELDS: Dict[str, dataclasses.Field] = {field.name: field for field in dataclasses.fields(RunOptions)}
DEFAULTS: Dict[str, Any] = vars(RunOptions())


def names_with(**properties: Any) -> Tuple[str, ...]:
    """Return the names of the options with these properties, as in `names_with(resume=SAME)`."""
    return tuple(
        name for name, field in FIELDS.items()
        if all(field.metadata[key] == value for key, value in properties.items()))
