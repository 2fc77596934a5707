"""SparK and FCMAE written down literally: visible cells are gathered by index, normalised as rows, scattered back.

From the description of the reference code, for plain ResNets and ConvNeXts. It shares nothing with `timm.mim`, and
takes from a method only its weights.
"""
import torch
import torch.nn.functional as F


class Gathered:
    """Operations on the visible cells of a batch."""

    def __init__(self, mask):
        self.visible = ~mask  # (B, h, w)

    def cells(self, x):
        scale = x.shape[2] // self.visible.shape[1], x.shape[3] // self.visible.shape[2]
        return self.visible.repeat_interleave(scale[0], 1).repeat_interleave(scale[1], 2)  # (B, H, W)

    def masked(self, x):
        return x * self.cells(x).unsqueeze(1)

    def conv(self, x, module):
        return self.masked(F.conv2d(x, module.weight, module.bias, module.stride, module.padding, 1, module.groups))

    def scatter(self, rows, like):
        out = torch.zeros(like.shape[0], *like.shape[2:], rows.shape[1])
        return out.index_put(tuple(self.cells(like).nonzero().T), rows).permute(0, 3, 1, 2)

    def gather(self, x):
        return x.permute(0, 2, 3, 1)[self.cells(x)]

    def batch_norm(self, x, module):
        rows = F.batch_norm(self.gather(x), None, None, module.weight, module.bias, training=True, eps=module.eps)
        return self.scatter(rows, x)

    def layer_norm(self, x, module):
        return self.scatter(F.layer_norm(
            self.gather(x), (x.shape[1],), module.weight, module.bias, module.eps), x)

    def norm(self, x, module):
        return (self.batch_norm if isinstance(module, torch.nn.BatchNorm2d) else self.layer_norm)(x, module)

    def grn(self, x, module):
        """x / (norm of a channel over the visible cells of a sample / its mean over channels)."""
        out = []
        for sample, cells in zip(x, self.cells(x)):
            rows = sample[:, cells]  # (C, visible cells)
            norm = rows.square().sum(1).sqrt()
            scale = module.weight * norm / (norm.mean() + module.eps)
            out.append(sample + module.bias.view(-1, 1, 1) + scale.view(-1, 1, 1) * sample)
        return torch.stack(out)


def resnet_scales(model, images, g):
    x = g.batch_norm(g.conv(g.masked(images), model.conv1), model.bn1).relu()
    x = g.masked(F.max_pool2d(x, 3, 2, 1))
    scales = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in layer:
            shortcut = x
            if block.downsample is not None:
                shortcut = g.batch_norm(g.conv(x, block.downsample[0]), block.downsample[1])
            x = g.batch_norm(g.conv(x, block.conv1), block.bn1).relu()
            x = g.batch_norm(g.conv(x, block.conv2), block.bn2)
            if hasattr(block, 'conv3'):
                x = g.batch_norm(g.conv(x.relu(), block.conv3), block.bn3)
            x = (x + shortcut).relu()
        scales.append(x)
    return scales[::-1]


def convnext_scales(model, images, g):
    x = g.layer_norm(g.conv(g.masked(images), model.stem[0]), model.stem[1])
    scales = []
    for stage in model.stages:
        if not isinstance(stage.downsample, torch.nn.Identity):
            x = g.conv(g.layer_norm(x, stage.downsample[0]), stage.downsample[1])
        for block in stage.blocks:
            rows = g.gather(g.layer_norm(g.conv(x, block.conv_dw), block.norm))
            y = g.scatter(F.gelu(F.linear(rows, block.mlp.fc1.weight, block.mlp.fc1.bias)), x)
            if hasattr(block.mlp, 'grn'):
                y = g.grn(y, block.mlp.grn)
            y = g.scatter(F.linear(g.gather(y), block.mlp.fc2.weight, block.mlp.fc2.bias), x)
            if block.gamma is not None:
                y = y * block.gamma.view(1, -1, 1, 1)
            x = x + y
        scales.append(x)
    return scales[::-1]


def dense_conv(x, module):
    return F.conv2d(x, module.weight, module.bias, module.stride, module.padding)


def dense_batch_norm(x, module):
    return F.batch_norm(x, None, None, module.weight, module.bias, training=True)


def spark_loss(method, scales, images, mask):
    g = Gathered(mask)
    dense = []
    for i, x in enumerate(scales(method.backbone, images, g)):
        x = g.norm(x, method.densify_norms[i])
        visible = g.cells(x).unsqueeze(1).expand_as(x)
        x = torch.where(visible, x, method.mask_tokens[i].expand_as(x))
        projection = method.densify_projs[i]
        dense.append(x if isinstance(projection, torch.nn.Identity) else dense_conv(x, projection))
    x = torch.zeros(())
    for i, block in enumerate(method.decoder.dec):
        x = x + dense[i] if i < len(dense) else x
        x = F.conv_transpose2d(x, block.up_sample.weight, block.up_sample.bias, stride=2, padding=1)
        x = F.relu6(dense_batch_norm(dense_conv(x, block.conv[0]), block.conv[1]))
        x = dense_batch_norm(dense_conv(x, block.conv[3]), block.conv[4])
    return pixel_loss(dense_conv(x, method.decoder.proj), images, mask)


def fcmae_loss(method, images, mask):
    x = dense_conv(convnext_scales(method.backbone, images, Gathered(mask))[0], method.proj)
    hidden = mask.unsqueeze(1).float()
    x = x * (1 - hidden) + method.mask_token * hidden
    for block in method.decoder:
        y = F.conv2d(x, block.conv_dw.weight, block.conv_dw.bias, padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
        y = F.layer_norm(y, (x.shape[1],), block.norm.weight, block.norm.bias, block.norm.eps)
        y = F.gelu(F.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias)).permute(0, 3, 1, 2)
        y = Gathered(torch.zeros_like(mask)).grn(y, block.mlp.grn).permute(0, 2, 3, 1)
        x = x + F.linear(y, block.mlp.fc2.weight, block.mlp.fc2.bias).permute(0, 3, 1, 2)
    cell = images.shape[-1] // mask.shape[-1]
    return pixel_loss(F.pixel_shuffle(dense_conv(x, method.pred.proj), cell), images, mask)


def pixel_loss(prediction, images, mask):
    total = 0.
    cell = images.shape[-2] // mask.shape[-2]
    for sample, row, column in mask.nonzero().tolist():
        rows, columns = slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)
        target = images[sample, :, rows, columns]
        target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
        total = total + (prediction[sample, :, rows, columns] - target).square().mean()
    return total / (mask.sum() + 1e-8)
