"""Masked image modeling (MIM) training task."""
from typing import Any, Dict, Optional

import torch
import torch.nn as nn

from timm.utils.model import unwrap_model
from .task import TrainingTask

_BACKBONE = 'backbone.'


class MaskedImageModelingTask(TrainingTask):
    """Pre-trains a backbone with a masked image modeling method.

    The method (see `timm.mim.create_mim`) is the trainable module. Its forward contains masking, backbone, decoder and
    loss, so that DistributedDataParallel and torch.compile apply to all of them. The eval model is the plain backbone:
    the `state_dict` of a checkpoint is an ordinary timm checkpoint. The other tensors of the method (mask token,
    decoder) are task state.

    Args:
        method: Masked image modeling method with a `backbone`.
        device: Device for task tensors and buffers.
        dtype: Dtype for task tensors and buffers.
        verbose: Enable info logging.

    Examples:

        ```python
        task = MaskedImageModelingTask(create_mim('simmim', 'vit_small_patch16_224'))
        task(images)['loss'].backward()
        ```
    """

    def __init__(
            self,
            method: nn.Module,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ):
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        self.trainable_module = method

    def prepare_distributed(
            self,
            device_ids: Optional[list] = None,
            **ddp_kwargs,
    ) -> 'MaskedImageModelingTask':
        """Wrap the method in DistributedDataParallel.

        Args:
            device_ids: Device of this process, e.g. `[local_rank]`. None for the CPU.
            **ddp_kwargs: Additional arguments passed to DistributedDataParallel.
        """
        from torch.nn.parallel import DistributedDataParallel as DDP
        self.trainable_module = DDP(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(
            self,
            backend: str = 'inductor',
            mode: Optional[str] = None,
            **compile_kwargs,
    ) -> nn.Module:
        """Compile the whole method, including the loss."""
        self.trainable_module = torch.compile(self.trainable_module, backend=backend, mode=mode, **compile_kwargs)
        return self.get_eval_model()

    def get_method(self, ema: bool = False) -> Optional[nn.Module]:
        """Return the method without DDP, compile or EMA wrappers, or None if `ema` is set but there is no EMA."""
        module = self.get_trainable_module(ema=ema)
        return None if module is None else unwrap_model(module)

    def update_target(self, progress: float) -> None:
        """Update the target encoder of methods that have one (I-JEPA); call this after each optimizer step.

        Args:
            progress: Share of the training that is done: the number of the step, from 0, divided by the number of all
                steps.
        """
        method = self.get_method()
        if hasattr(method, 'update_target'):
            method.update_target(progress)

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        method = self.get_method(ema=ema) if module is None else unwrap_model(module)
        return None if method is None else method.backbone

    def get_task_state(
            self,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> Dict[str, Any]:
        method = self.get_method(ema=ema) if module is None else unwrap_model(module)
        if method is None:
            return {}
        return {'method': {k: v for k, v in method.state_dict().items() if not k.startswith(_BACKBONE)}}

    def load_task_state(
            self,
            state: Optional[Dict[str, Any]],
            strict: bool = True,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> None:
        method = self.get_method(ema=ema) if module is None else unwrap_model(module)
        if method is None:
            raise RuntimeError('Cannot load EMA task state before setup_ema().')
        if not state or 'method' not in state:
            if strict:
                raise RuntimeError('The checkpoint contains only a backbone, without the mask token and decoder.')
            return
        missing, unexpected = method.load_state_dict(state['method'], strict=False)
        missing = [k for k in missing if not k.startswith(_BACKBONE)]
        if strict and (missing or unexpected):
            raise RuntimeError(f'The task state does not fit the method: missing {missing}, unexpected {unexpected}.')

    def create_evaluator(self, **kwargs):
        raise NotImplementedError(
            'A pre-training task has no labels to evaluate; timm.mim.pretrain.held_out measures its masked loss.')

    def forward(
            self,
            input: torch.Tensor,
            target: Optional[torch.Tensor] = None,
            mask: Optional[torch.Tensor] = None,
            noise: Optional[torch.Tensor] = None,
    ) -> Dict[str, Any]:
        """Forward pass of the method.

        Args:
            input: Normalised images of shape (B, C, H, W).
            target: Labels from the loader, which are ignored.
            mask: Mask over the patch grid, True is masked. If None, the method makes one.
            noise: Uniform noise to make the mask from, see `noise_shape` of the method.

        Returns:
            Dictionary containing:
                - 'loss': Loss on the masked patches
                - 'output': Prediction of the method
                - 'mask': Mask that was used
                - 'logs': Further scalars to monitor, by name
        """
        result = self.trainable_module(input, mask=mask, noise=noise)
        return {
            'loss': result.loss,
            'output': result.prediction,
            'mask': result.mask,
            'logs': result.logs or {},
        }
