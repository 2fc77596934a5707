"""Default options of each method, from its paper.

The length of a run and the sizes of model, images and batch have general defaults instead (`flags/run_options`). The
complete settings of the papers' runs are in `timm/mim/recipes`.
"""

RECIPES = {
    # SimMIM, section 4 and the configuration of ViT-B in microsoft/SimMIM
    'simmim': dict(
        mask_ratio=0.6,
        opt='adamw',
        opt_betas=[0.9, 0.999],
        weight_decay=0.05,
        clip_grad=5.0,
        lr_base=1e-4,
        lr_base_size=512,
        lr_base_scale='linear',
        scale=[0.67, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        color_jitter=0.0,
        train_interpolation='bilinear',
    ),
    # MAE, table 8
    'mae': dict(
        mask_ratio=0.75,
        opt='adamw',
        opt_betas=[0.9, 0.95],
        weight_decay=0.05,
        clip_grad=0.0,
        lr_base=1.5e-4,
        lr_base_size=256,
        lr_base_scale='linear',
        scale=[0.2, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        color_jitter=0.0,
        train_interpolation='bicubic',
    ),
    # I-JEPA, appendix A.1: 1e-3 for 2048 images
    'ijepa': dict(
        opt='adamw',
        opt_betas=[0.9, 0.999],
        weight_decay=0.04,
        weight_decay_end=0.4,
        clip_grad=0.0,
        lr_base=1e-3,
        lr_base_size=2048,
        lr_base_scale='linear',
        scale=[0.3, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.0,
        color_jitter=0.0,
        train_interpolation='bilinear',
    ),
<<<<<<< HEAD
    # data2vec 2.0, table 8 and the configuration of ViT-B in facebookresearch/fairseq: 1e-3 for 256 images
    'data2vec': dict(
        opt='adamw',
        opt_betas=[0.9, 0.95],
        weight_decay=0.05,
        clip_grad=4.0,
        lr_base=1e-3,
        lr_base_size=256,
        lr_base_scale='linear',
        scale=[0.2, 1.0],
=======
    # CAPI, the default configuration of facebookresearch/capi: 1e-3 for 16384 images
    'capi': dict(
        opt='adamw',
        opt_betas=[0.9, 0.95],
        weight_decay=0.1,
        clip_grad=0.0,
        lr_base=1e-3,
        lr_base_size=16384,
        lr_base_scale='linear',
        scale=[0.6, 1.0],
>>>>>>> main
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        color_jitter=0.0,
        train_interpolation='bicubic',
    ),
    # SparK, appendix B, and the command lines of keyu-tian/SparK; for ConvNeXt the second beta is 0.999
    'spark': dict(
        mask_ratio=0.6,
        opt='lamb',
        opt_betas=[0.9, 0.95],
        opt_eps=1e-6,
        opt_kwargs=dict(max_grad_norm=5.0),  # LAMB clips by itself
        weight_decay=0.04,
        weight_decay_end=0.2,
        clip_grad=0.0,
        lr_base=2e-4,
        lr_base_size=256,
        lr_base_scale='linear',
        scale=[0.67, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        color_jitter=0.0,
        train_interpolation='bicubic',
    ),
    # FCMAE, appendix A.1
    'fcmae': dict(
        mask_ratio=0.6,
        opt='adamw',
        opt_betas=[0.9, 0.95],
        weight_decay=0.05,
        clip_grad=0.0,
        lr_base=1.5e-4,
        lr_base_size=256,
        lr_base_scale='linear',
        scale=[0.2, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        color_jitter=0.0,
        train_interpolation='bicubic',
    ),
}
