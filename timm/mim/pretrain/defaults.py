"""The flags of a training script that have a meaning in pre-training, and what holds where they are not given."""

DEFAULTS = dict(
    # dataset
    data_dir=None, dataset='', train_split='train', val_split=None, train_num_samples=None, val_num_samples=None,
    dataset_download=False, dataset_trust_remote_code=False, input_img_mode=None, input_key=None, target_key=None,
    max_unreadable=0.1,
    max_pixels=89_478_485,  # where PIL begins to warn; decoding takes some 13 bytes of a worker's memory for each
    # model
    model='vit_small_patch16_224', pretrained=False, pretrained_path=None, initial_checkpoint='', model_kwargs={},
    img_size=None, in_chans=None, input_size=None, mean=None, std=None, interpolation='', crop_pct=None,
    drop_path=None, grad_checkpointing=False, channels_last=False, fast_norm=False, torchcompile=None,
    torchcompile_mode=None,
    # device
    device=None, amp=False, amp_dtype='bfloat16', no_ddp_bb=False, synchronize_step=False, device_modules=None,
    # batches
    batch_size=128, validation_batch_size=None, grad_accum_steps=1, epoch_repeats=0.0, workers=4, pin_mem=False,
    # optimizer
    opt='adamw', opt_eps=None, opt_betas=None, momentum=0.9, weight_decay=0.05, weight_decay_end=None,
    clip_grad=None, clip_mode='norm', layer_decay=None, layer_decay_min_scale=0.0, layer_decay_no_opt_scale=None,
    opt_kwargs={},
    # schedule
    lr=None, lr_base=1.5e-4, lr_base_size=256, lr_base_scale='linear', sched='cosine', epochs=300,
    start_epoch=None, stop_epoch=None, save_epochs=[], warmup_epochs=None, warmup_lr=0.0,
    warmup_prefix=False, min_lr=0.0, cooldown_epochs=0, decay_milestones=[90, 180, 270], decay_epochs=None,
    decay_rate=0.1, lr_noise=None, lr_noise_pct=0.67, lr_noise_std=1.0, lr_cycle_mul=1.0, lr_cycle_decay=0.5,
    lr_cycle_limit=1, lr_k_decay=1.0, lr_decay_fn=None, lr_stable_timescale=None,
    # augmentation
    no_aug=False, train_crop_mode=None, scale=None, ratio=None, hflip=0.5, vflip=0.0, color_jitter=0.0,
    color_jitter_prob=None, grayscale_prob=0.0, gaussian_blur_prob=0.0, aa=None, train_interpolation='bicubic',
    # exponential moving average
    model_ema=False, model_ema_decay=0.9998, model_ema_warmup=False,
    # miscellaneous
    seed=42, log_interval=50, val_interval=1, recovery_interval=0, checkpoint_hist=10, output='', experiment='',
    resume='', no_resume_opt=False,
    # trackers
    log_tensorboard=False, log_wandb=False, wandb_project=None, wandb_tags=None, wandb_resume_id='',
    # masked image modeling
    mim_probe_dir=None, mim_probe=['knn', 'linear'], mim_probe_interval=0, mim_probe_layers=['last'],
    mim_probe_pool='model',
    mim=None, mim_module=None, mim_kwargs={}, mask_ratio=None, mask_unit=None, fsdp=False,
)
