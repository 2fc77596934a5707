"""Helpers of the tests of checkpoint conversion."""
import torch
from safetensors.torch import load_file

from timm.mim import create_mim
from timm.mim.convert import convert


def load_method(path, recipe):
    """The method of a converted checkpoint, built as the conversion says."""
    method = create_mim(recipe.method, recipe.model, recipe.img_size, dict(recipe.model_kwargs), **recipe.options)
    method.load_state_dict(load_file(path))  # strict
    return method.eval()


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys(), actual.keys() ^ expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name


def there_and_back(content, folder, to, wrapped=True, **kwargs):
    """Save, convert to ours by way of a method's file and of a training checkpoint, and back.

    Returns: what was converted to, and what came back.
    """
    source, ours, task, back = (folder / name for name in ('a.pth', 'b.safetensors', 'c.pth.tar', 'd.pth'))
    torch.save(dict(model=content) if wrapped else content, source)
    conversion = convert(source, ours, **kwargs)
    assert (conversion.source_format, conversion.dest_format) == (to, 'mim')
    convert(ours, task, to='task')
    convert(task, back, to=to)
    return conversion, torch.load(back, weights_only=True)
