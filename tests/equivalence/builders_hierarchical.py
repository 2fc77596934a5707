"""Models whose configuration is an object, built from plain keyword arguments. Imported by both processes."""
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg


def multiscale_vit(img_size=(64, 64), drop_path_rate=0.1, num_classes=5, in_chans=3, **cfg):
    """A MultiScaleVit of two stages."""
    stages = dict(depths=(1, 2), embed_dim=16, num_heads=1, stride_q=((1, 1), (2, 2)), stride_kv_adaptive=(2, 2))
    return MultiScaleVit(
        MultiScaleVitCfg(**{**stages, **cfg}),
        img_size=img_size, drop_path_rate=drop_path_rate, num_classes=num_classes, in_chans=in_chans)
