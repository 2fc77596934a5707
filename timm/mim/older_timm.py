""" What `timm.mim` asks of timm 1.0.31, and what stands in for it in the releases before.
"""
from pathlib import Path
from typing import Any, Dict, Optional

import torch.nn as nn

from timm.models import _hub, get_pretrained_cfg, is_model
from timm.models._helpers import _torch_load
from timm.models._pretrained import filter_pretrained_cfg
from timm.models._registry import get_arch_name

__all__ = ['get_model_input_config', 'load_checkpoint_metadata', 'resolve_model_input_args', 'save_config_for_hf']

try:
    from timm.models import get_model_input_config, resolve_model_input_args
    from timm.models._hub import save_config_for_hf
    from timm.utils import load_checkpoint_metadata
except ImportError:

    def get_model_input_config(model: nn.Module) -> Dict[str, Any]:
        """ The input size (channels, height, width) of a model, that of its weights where no layer tells.
        """
        cfg = getattr(model, 'pretrained_cfg', None) or {}
        channels, *img_size = cfg.get('input_size', (3, 224, 224))
        first_conv = cfg.get('first_conv')
        if isinstance(first_conv, (list, tuple)):
            first_conv = first_conv[0]
        conv = model.get_submodule(first_conv) if first_conv else None
        if isinstance(conv, nn.Conv2d):
            channels = conv.in_channels
        layers = (getattr(model, name, None) for name in ('patch_embed', 'stem'))
        img_sizes = (getattr(layer, 'img_size', None) for layer in layers)
        return dict(input_size=(channels, *next(filter(None, img_sizes), img_size)))

    def resolve_model_input_args(
            model_name: str,
            args: Optional[Dict[str, Any]] = None,
            **model_kwargs,
    ) -> Dict[str, Any]:
        """ Arguments of `create_model`, with the image size in `args` if models of that name are built for one.
        """
        model_kwargs = {name: value for name, value in model_kwargs.items() if value is not None}
        img_size = (args or {}).get('img_size')
        if ':' not in model_name and not is_model(get_arch_name(model_name)):
            raise RuntimeError(f'Unknown model ({model_name})')
        cfg = None if ':' in model_name else get_pretrained_cfg(model_name)
        if img_size is not None and getattr(cfg, 'fixed_input_size', False):
            model_kwargs.setdefault('img_size', tuple(img_size))
        return dict(model_name=model_name, **model_kwargs)

    def load_checkpoint_metadata(checkpoint_path: str) -> Dict[str, Any]:
        """ A checkpoint that holds data and the arguments of the script, and no code.
        """
        return _torch_load(checkpoint_path, map_location='cpu', weights_only=True)

    def save_config_for_hf(
            model: nn.Module,
            config_path: str,
            model_config: Dict[str, Any],
            data_config: Dict[str, Any],
    ) -> None:
        """ The configuration of a model on the hub, with the preprocessing its weights want.
        """
        cfg = filter_pretrained_cfg(model.pretrained_cfg, remove_source=True, remove_null=True)
        cfg.update(model_config['pretrained_cfg'], **data_config)
        del cfg['architecture']
        _hub.save_config_for_hf(model, Path(config_path), dict(model_config, pretrained_cfg=cfg))
