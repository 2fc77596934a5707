"""Copy weights from timm's models to Hugging Face's, with the names that `timm.mim.convert` writes."""
import torch

from timm.mim.convert import FORMATS


def copy_weights(ours: torch.nn.Module, theirs: torch.nn.Module, format_name: str) -> None:
    """Copy the weights of a method to a model of transformers.

    Args:
        ours: Method of `timm.mim`.
        theirs: Model of transformers, changed in place.
        format_name: Name of the format of the model, see `timm.mim.convert`.
    """
    model_format = FORMATS[format_name]
    tensors = model_format.from_ours(ours.state_dict())
    with torch.no_grad():
        for name, tensor in model_format.canonical(theirs.state_dict()).items():
            if 'relative_position_index' not in name:  # a constant
                tensor.copy_(tensors[name])
