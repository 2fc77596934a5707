"""The page of models and methods is what the code gives."""
import importlib.util
from pathlib import Path

from timm.mim import list_mim_models, list_mims
from timm.models import get_model_class, has_embed_stages, list_models

SCRIPT = Path(__file__).parents[2] / 'hfdocs' / 'mim_models.py'


def script():
    spec = importlib.util.spec_from_file_location('mim_models_page', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page():
    module = script()
    text = module.PAGE.read_text()
    assert text == module.page(), 'python hfdocs/mim_models.py writes it again'

    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line[:1] == '|']
    header, _, *rows = rows
    assert header[2:] == [f'`{method}`' for method in list_mims()]
    *families, total = rows
    assert int(total[1]) == sum(int(row[1]) for row in families) == sum(map(has_embed_stages, list_models()))
    for column, method in enumerate(list_mims(), start=2):
        served = [int(row[column].split(',')[0]) for row in families if row[column][0].isdigit()]
        assert sum(served) == int(total[column]) == len(list_mim_models(method))


def test_families():
    rows = {row[0]: row for row in script().table()}

    def cells(family, *methods):
        of_method = dict(zip(list_mims(), rows[f'`{family}`'][2:]))
        return [of_method[method] for method in methods]

    every = 'fcmae', 'ijepa', 'mae', 'simmim', 'spark'
    assert rows['`vision_transformer_hybrid`'][1] == '14'
    assert cells('vision_transformer_hybrid', *every, 'capi') == ['attention', '14', '14', '14', 'attention', '14']
    assert cells('swin_transformer', *every) == [
        'attention', 'cannot drop tokens', 'cannot drop tokens', '9', 'attention']
    assert cells('crossvit', 'simmim') == ['no patch tokens apart from positions']
    assert cells('pit', 'simmim') == ['no feature map']
    assert cells('resnet', *every) == ['81', 'cannot drop tokens', 'cannot drop tokens', '81', '81']
    classes = {get_model_class(name).__name__ for name in list_models(module='qwen3_vit')}
    assert classes == {'Qwen3VitEncoder', 'Qwen3VitClassifier'}
    assert cells('qwen3_vit', 'mae') == ['3, 6 cannot drop tokens']
