"""Convert masked image modeling checkpoints from and to the formats of other projects.

    python -m timm.mim.convert SOURCE DEST [--to FORMAT]

The names of its tensors identify the format of SOURCE. The formats are:

    facebook-mae          facebookresearch/mae, with the decoder or only the encoder
    facebook-pixio        facebookresearch/pixio, with the decoder or only the encoder
    facebook-ijepa        facebookresearch/ijepa
    facebook-fcmae        facebookresearch/ConvNeXt-V2, the whole method or only the encoder
    keyutian-spark        keyu-tian/SparK, with the decoder (*_spark_style.pth) or only the encoder (*_timm_style.pth)
    microsoft-simmim      microsoft/SimMIM, vision transformer or Swin
    huggingface-vitmae    transformers, ViTMAEForPreTraining or ViTMAEModel (a folder)
    huggingface-pixio     transformers, PixioModel (a folder)
    huggingface-vit-mim   transformers, ViTForMaskedImageModeling (a folder)
    huggingface-swin-mim  transformers, SwinForMaskedImageModeling (a folder)
    mim                   timm.mim.create_mim(...).state_dict(), safetensors
    task                  a checkpoint of train.py --mim, a file or a folder (written as a file)
    encoder               a plain timm model, safetensors
    target-encoder        the target encoder of I-JEPA as a plain timm model, safetensors (write only)

Without --to, a checkpoint of another project becomes `mim`. You can write any format that can hold the model:

    python -m timm.mim.convert mae_visualize_vit_base.pth mae_base.safetensors
    python -m timm.mim.convert mae_pretrain_vit_base.pth vit_base.safetensors --to encoder
    python -m timm.mim.convert IN1K-vit.h.14-300e.pth.tar vit_huge.safetensors --to target-encoder
    python -m timm.mim.convert resnet50_withdecoder_1kpretrained_spark_style.pth resnet50_spark.safetensors
    python -m timm.mim.convert convnextv2_base_1k_224_fcmae.pt convnextv2_base.safetensors --to encoder
    python -m timm.mim.convert output/pretrain/my_run/last.pth.tar my_vit_mim --to huggingface-vit-mim
    python -m timm.mim.convert simmim_pretrain__swin_base__img192_window6__800ep.pth start.pth.tar --to task

The shapes of the tensors determine the model and the decoder. Other values come from a `config.json` next to the
tensors, from what train.py or this command wrote into the file, from the published model of that width, or from flags:

    --model NAME              the timm model, if it is not a plain ViT, BEiT, Swin, ResNet or ConvNeXt
    --model-kwargs K=V ...    arguments of the model, num_heads=12 for example
    --img-size HEIGHT WIDTH   image size, one number if it is square
    --mim-kwargs K=V ...      options of the method, decoder_heads=16 for example
    --ema                     read the moving average that train.py --model-ema keeps
    --force                   replace DEST if it exists

The command prints the line of Python that builds the module, and the line that loads the weights. It converts all
tensors or none: it fails, and lists the tensors, if some are unknown, missing or of another shape. It also fails if the
format cannot hold the model, if weights are integers, infinite or NaN, if one tensor has two names, or if `config.json`
contradicts the tensors. If only the number of patches is known, images are assumed to be square. The class tokens of
Pixio become the class token and the register tokens of the timm model. Checkpoints of Hugging
Face, and those that facebookresearch/mae saves during training, record whether MAE was trained on normalised patches.
For others the command prints a note and assumes that it was; if not, give `--mim-kwargs norm_pix=False`.

The command never runs code from a file: it reads pickles with `weights_only=True`. A file can only name a timm model
and the arguments that describe it: the command reads no other file and downloads nothing. It omits the teacher of a
SimMIM model and prints a note. It writes files atomically. It does not convert optimizers and schedules.

`train.py --mim METHOD --resume start.pth.tar` starts from a converted `task` at epoch 0, with a new optimizer.
"""
from .checkpoint import ConversionError, Hints, Recipe
from .formats import FORMATS, Conversion, convert

__all__ = ['Conversion', 'ConversionError', 'FORMATS', 'Hints', 'Recipe', 'convert']
