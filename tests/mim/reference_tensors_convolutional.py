"""Names and shapes of tensors in checkpoints of convolutional models, of code that cannot be installed.

Written down from keyu-tian/SparK (pretrain/spark.py, decoder.py, models), facebookresearch/ConvNeXt and
facebookresearch/ConvNeXt-V2 (models/convnextv2.py).
"""
import torch

from reference_tensors import fill, linear, norm

DEPTHS, DIMS = (2, 2, 6, 2), (40, 80, 160, 320)  # ConvNeXt V2 atto


def conv(name, outputs, inputs, size, bias=True):
    return {f'{name}.weight': (outputs, inputs, size, size), **({f'{name}.bias': (outputs,)} if bias else {})}


def batch_norm(name, width):
    return {**norm(name, width), f'{name}.running_mean': (width,), f'{name}.running_var': (width,)}


def filled(shapes, fill=fill, seed=0):
    """Tensors of random values: running variances are positive, and each batch norm counts its batches."""
    tensors = fill(shapes, seed)
    for name in [name for name in tensors if name.endswith('running_var')]:
        tensors[name] = tensors[name].abs() + 0.5 if tensors[name].device.type == 'cpu' else tensors[name]
        tensors[name.replace('running_var', 'num_batches_tracked')] = torch.tensor(7)
    return tensors


def resnet(blocks=(2, 2, 2, 2), bottleneck=False, stem=64, widths=(64, 128, 256, 512)):
    """Names and shapes of timm's ResNet."""
    shapes = {**conv('conv1', stem, 3, 7, bias=False), **batch_norm('bn1', stem)}
    inputs, expansion = stem, 4 if bottleneck else 1
    for layer, (count, width) in enumerate(zip(blocks, widths), start=1):
        for i in range(count):
            name, outputs = f'layer{layer}.{i}', width * expansion
            sizes = [(width, inputs, 1), (width, width, 3), (outputs, width, 1)] if bottleneck else [
                (width, inputs, 3), (width, width, 3)]
            for number, (out, into, size) in enumerate(sizes, start=1):
                shapes.update({**conv(f'{name}.conv{number}', out, into, size, bias=False),
                               **batch_norm(f'{name}.bn{number}', out)})
            if inputs != outputs or (i == 0 and layer > 1):
                shapes.update({**conv(f'{name}.downsample.0', outputs, inputs, 1, bias=False),
                               **batch_norm(f'{name}.downsample.1', outputs)})
            inputs = outputs
    return shapes


def convnext(depths=DEPTHS, dims=DIMS, v2=True):
    """Names and shapes of facebookresearch's ConvNeXt and ConvNeXt V2, models/convnext.py and models/convnextv2.py."""
    shapes = {**conv('downsample_layers.0.0', dims[0], 3, 4), **norm('downsample_layers.0.1', dims[0])}
    for stage in range(1, 4):
        shapes.update({**norm(f'downsample_layers.{stage}.0', dims[stage - 1]),
                       **conv(f'downsample_layers.{stage}.1', dims[stage], dims[stage - 1], 2)})
    for stage, (depth, width) in enumerate(zip(depths, dims)):
        for i in range(depth):
            shapes.update(convnext_block(f'stages.{stage}.{i}', width, v2))
    return shapes


def convnext_block(name, width, v2=True):
    grn = {f'{name}.grn.gamma': (1, 1, 1, 4 * width), f'{name}.grn.beta': (1, 1, 1, 4 * width)}
    return {
        **({} if v2 else {f'{name}.gamma': (width,)}),
        **conv(f'{name}.dwconv', width, 1, 7), **norm(f'{name}.norm', width),
        **linear(f'{name}.pwconv1', 4 * width, width), **(grn if v2 else {}),
        **linear(f'{name}.pwconv2', width, 4 * width)}


def spark(encoder, widths, decoder=64, has_batch_norm=True):
    """Names and shapes of a SparK model. `widths` are those of the feature maps, the deepest first."""
    shapes = {f'sparse_encoder.sp_cnn.{name}': shape for name, shape in encoder.items()}
    for scale, width in enumerate(widths):
        shapes[f'mask_tokens.{scale}'] = (1, width, 1, 1)
        shapes.update((batch_norm if has_batch_norm else norm)(f'densify_norms.{scale}', width))
        if scale or width != decoder:
            shapes.update(conv(f'densify_projs.{scale}', decoder // 2 ** scale, width, 3 if scale else 1))
    for i in range(5):
        name, inputs = f'dense_decoder.dec.{i}', decoder // 2 ** i
        shapes.update({
            **conv(f'{name}.up_sample', inputs, inputs, 4),
            **conv(f'{name}.conv.0', inputs, inputs, 3, bias=False), **batch_norm(f'{name}.conv.1', inputs),
            **conv(f'{name}.conv.3', inputs // 2, inputs, 3, bias=False), **batch_norm(f'{name}.conv.4', inputs // 2)})
    return {**shapes, **conv('dense_decoder.proj', 3, decoder // 32, 1)}


def spark_file(tensors, arch, size=64):
    """A file `*_spark_style.pth`, with the buffers and the settings that no code reads."""
    nan = torch.full((1, 3, 1, 1), torch.nan)  # torch.empty in the reference
    config = {'mask_ratio': 0.5, 'densify_norm_str': 'bn', 'sbn': True, 'hierarchy': 4, 'dense_decoder.width': 64}
    module = {**tensors, 'imn_m': nan, 'imn_s': nan, 'norm_black': torch.zeros(1, 3, size, size), 'config': config}
    return dict(
        args='Namespace()', input_size=size, arch=arch, epoch=1600, performance_desc='', optimizer={}, is_pretrain=True,
        module=module)
