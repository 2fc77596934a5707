"""Conversion of Masked Image Modeling Checkpoints, Both Ways

    python -m timm.mim.convert SOURCE DEST [--to FORMAT]

The format of SOURCE is found by the names of its tensors. These are the formats:

    facebook-mae          facebookresearch/mae, with the decoder or the encoder alone
    facebook-ijepa        facebookresearch/ijepa
    microsoft-simmim      microsoft/SimMIM, vision transformer or Swin
    huggingface-vitmae    transformers, ViTMAEForPreTraining or ViTMAEModel (a folder)
    huggingface-vit-mim   transformers, ViTForMaskedImageModeling (a folder)
    huggingface-swin-mim  transformers, SwinForMaskedImageModeling (a folder)
    mim                   timm.mim.create_mim(...).state_dict(), safetensors
    task                  a checkpoint of train.py --mim
    encoder               a plain timm model, safetensors
    target-encoder        the target encoder of I-JEPA as a plain timm model, safetensors (to write only)

What comes from elsewhere becomes `mim` if nothing else is said. Any format can be written that can hold the model:

    python -m timm.mim.convert mae_visualize_vit_base.pth mae_base.safetensors
    python -m timm.mim.convert mae_pretrain_vit_base.pth vit_base.safetensors --to encoder
    python -m timm.mim.convert IN1K-vit.h.14-300e.pth.tar vit_huge.safetensors --to target-encoder
    python -m timm.mim.convert output/pretrain/my_run/last.pth.tar my_vit_mim --to huggingface-vit-mim
    python -m timm.mim.convert simmim_pretrain__swin_base__img192_window6__800ep.pth start.pth.tar --to task

Model and decoder are read off the tensors. What they do not tell is taken from a `config.json` next to them, from what
train.py or this command wrote into a file, from the published model of that width, or from you:

    --model NAME              the timm model, for one that is not plain ViT, BEiT or Swin
    --model-kwargs K=V ...    arguments of the model, num_heads=12 for example
    --img-size HEIGHT WIDTH   image size, one number if it is square
    --mim-kwargs K=V ...      options of the method, decoder_heads=16 for example
    --ema                     read the moving average that train.py --model-ema keeps
    --force                   replace DEST if it exists

The command prints the line of Python that builds the module, and the one that loads the weights. Nothing is left out:
tensors that are unknown, missing or of another shape are an error that lists them, and so is a model that the wanted
format cannot hold. Integers or numbers that are not finite in place of weights, two names for one tensor, and a
`config.json` that contradicts the tensors are errors, too. Where only the number of patches is known, images are taken
as square. Hugging Face's checkpoints and those that facebookresearch/mae saves while it trains say whether MAE was
trained on normalised patches. For others the command prints a note and assumes that it was; if not, say
`--mim-kwargs norm_pix=False`.

No code of a file is run: pickles are read with `weights_only=True`. A file can name a model of timm and the arguments
that describe it, and nothing else: no other file is read, and nothing is downloaded. The teacher of a SimMIM model is
left out, with a note. A file is written whole or not at all. Optimizers and schedules are not converted.

`train.py --mim METHOD --resume start.pth.tar` starts from a converted `task`, with a new optimizer and at epoch 0.
"""
from .checkpoint import ConversionError as ConversionError, Hints as Hints, Recipe as Recipe
from .formats import FORMATS as FORMATS, Conversion as Conversion, convert as convert
