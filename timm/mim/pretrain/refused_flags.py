"""Flags of timm's training script that pre-training refuses, each with a reason."""

_LABELS = 'it works on class labels, and pre-training has none'
_HEAD = "it acts on the classifier head, which a pre-trained encoder does not have"
_MIXING = 'it mixes images and their labels'
_ERASING = 'it erases pixels, which masking already does'
_SPLITS = 'it compares augmented copies of an image by their predicted classes'
_DISTILLATION = 'there is no teacher'
_RESOLUTION = 'the image size of a pre-training run is fixed'
_NAFLEX = 'pre-training uses a fixed patch grid'
_SCHEDULE = 'schedules step at every update, as those of the published recipes do'

# Flags without meaning under --mim.
MEANINGLESS = {
    name: reason
    for reason, names in {
        _LABELS:
            'class_map num_classes smoothing bce_loss bce_sum bce_target_thresh bce_pos_weight loss task '
            'multilabel_threshold target_format eval_metric tta loss_pos_weight loss_class_weight loss_weight_power '
            'loss_weight_beta loss_weight_max class_stats asl_gamma_pos asl_gamma_neg asl_clip asl_reduction '
            'poly_epsilon poly_gamma poly_alpha twoway_tp twoway_tn db_neg_scale db_init_bias db_focal_gamma',
        _HEAD: 'gp head_init_scale head_init_bias drop drop_block drop_connect',
        _MIXING: 'mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode mixup_off_epoch',
        _ERASING: 'reprob remode recount resplit',
        _SPLITS: 'aug_splits jsd_loss split_bn',
        _DISTILLATION:
            'kd_model_name kd_distill_type kd_loss_type distill_loss_weight task_loss_weight kd_temperature '
            'kd_student_feature_dim kd_teacher_feature_dim kd_token_distill_type',
        _RESOLUTION:
            'train_img_sizes train_batch_sizes train_size_probs train_size_schedule train_size_schedule_spread '
            'train_size_random_mix train_batches_per_epoch variable_batch_loss_scale',
        _NAFLEX:
            'naflex_loader naflex_train_seq_lens naflex_max_seq_len naflex_patch_sizes naflex_patch_size_probs '
            'naflex_loss_scale naflex_patchify_channels_first',
        _SCHEDULE: 'sched_on_updates',
    }.items()
    for name in names.split()
}

# Flags that pre-training could have and does not, with what to do instead.
UNSUPPORTED = dict(
    torchscript='use --torchcompile',
    fuser='use --torchcompile',
    model_dtype='use --amp',
    local_rank='start the script with torchrun',
    pretrained_cfg_overlay='use --pretrained-path for weights, --mean and --std for images',
    aug_repeats='use --epoch-repeats',
    bn_momentum='set it in --model-kwargs',
    bn_eps='set it in --model-kwargs',
    sync_bn='batch statistics stay those of each process',
    dist_bn='batch statistics stay those of each process',
    model_ema_force_cpu='the average stays on the device of the model',
    patience_epochs='take another --sched than plateau',
    worker_seeding='every image has a seed of its own, made from --seed',
    use_multi_epochs_loader='workers live as long as the run does',
    no_prefetcher='images are always normalised on the device',
    save_images='the run folder gets pictures of held-out images',
)
