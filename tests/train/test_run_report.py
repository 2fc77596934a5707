"""report.html: one page that needs nothing else."""
import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from timm.mim.pretrain.flags.run_options import DEFAULTS
from timm.mim.pretrain.reporting import report
from timm.mim.pretrain.reporting.report import Report

CHROMIUM = os.environ.get('CHROMIUM') or next(
    filter(None, map(shutil.which, ('chromium', 'chromium-headless-shell', 'google-chrome', 'chrome'))), None)
_CLOSED = {'html', 'head', 'title', 'style', 'body', 'h1', 'h2', 'p', 'pre', 'div', 'table', 'tr', 'th', 'td', 'figure'}


class Page(HTMLParser):
    """Reads a page, whose elements have to be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.images, self.links, self.text = [], [], [], [], ''
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ('src', 'href') if name in attributes]
        if tag == 'img':
            self.images.append(Image.open(io.BytesIO(base64.b64decode(attributes['src'].split(',')[1]))))
        if tag in _CLOSED:
            self.open.append(tag)
        if tag == 'tr':
            self.cells.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ('td', 'th'):
            self.cells[-1].append(data)


def test_page_of_a_run(finished_run):
    text = (finished_run / 'report.html').read_text()
    page = Page(text)
    assert page.links and all(link.startswith('data:image/') for link in page.links)
    assert 'http' not in re.sub(r'base64,[^"]*', '', text)

    measured = [json.loads(line) for line in (finished_run / 'metrics.jsonl').read_text().splitlines()]
    errors = [f'{line["eval_masked_l1"]:.5g}' for line in measured if 'eval_masked_l1' in line]
    header = page.cells[0]
    assert [row[header.index('masked L1')] for row in page.cells[1:7]] == errors

    pictures = [image for image in page.images if image.format == 'JPEG']
    assert len(pictures) == 6
    for epoch, picture in enumerate(pictures):
        original = Image.open(finished_run / 'reconstructions' / f'epoch-{epoch:04d}.png')
        difference = np.abs(np.asarray(picture, float) - np.asarray(original, float)).mean()
        assert picture.size == original.size and difference < 6  # JPEG
    if (finished_run / 'curves.png').exists():
        curves = next(image for image in page.images if image.format == 'PNG')
        assert np.array_equal(np.asarray(curves), np.asarray(Image.open(finished_run / 'curves.png')))
    else:
        assert 'Curves need matplotlib' in page.text

    command = json.loads((finished_run / 'summary.json').read_text())
    for part in (*command['load'], *command['hub'], command['fine_tune'], (finished_run / 'args.yaml').read_text(),
                 torch.__version__, f'validate.py --mim simmim --checkpoint {finished_run}/last.pth.tar',
                 '--resume auto', 'epoch 6 of 6'):
        assert part in page.text, part


def make_report(folder, **options):
    values = {**DEFAULTS, **dict(mim='ijepa', model='test_vit', epochs=300, in_chans=3), **options}
    report = Report(folder, SimpleNamespace(**values), {}, dict(command='python train.py <b>', timm='1 & 2'))
    (folder / 'reconstructions').mkdir(exist_ok=True)
    return report


def test_long_runs_make_short_pages(tmp_path):
    report = make_report(tmp_path)
    rng = np.random.default_rng(0)
    with open(tmp_path / 'metrics.jsonl', 'w') as f:
        for epoch in range(300):
            f.write(json.dumps(dict(update=epoch + 1, epoch=epoch, eval_loss=epoch / 7)) + '\n')
    for epoch in range(0, 300, 3):
        pixels = np.zeros((200, 1400, 3), np.uint8) + rng.integers(0, 255, 3, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'reconstructions' / f'epoch-{epoch:04d}.png')
    report.write(tmp_path / 'metrics.jsonl')
    page = Page((tmp_path / 'report.html').read_text())
    assert len(page.images) == 8 and page.images[0].width == 1200
    epochs = [row[1] for row in page.cells if row[0].isdecimal()]
    assert len(epochs) == 40 and epochs[0] == '1' and epochs[-1] == '300'  # from 1, as in the log
    assert 'python train.py <b> --experiment' in page.text and '1 & 2' in page.text  # and no tag


def test_the_encoder_before_training_stands_at_epoch_0(tmp_path):
    report = make_report(tmp_path)
    lines = dict(update=0, epoch=0, eval_knn_top1=10.), dict(update=5, epoch=0, eval_loss=1.)
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
    report.write(tmp_path / 'metrics.jsonl')
    page = Page((tmp_path / 'report.html').read_text())
    assert [row[:2] for row in page.cells if row[0].isdecimal()] == [['0', '0'], ['5', '1']]


def test_pictures_that_stay_the_same_are_shown_once(tmp_path):
    report = make_report(tmp_path)
    for epoch in range(4):
        picture = Image.new('RGB', (300, 100), 'blue' if epoch < 3 else 'red')
        picture.paste((epoch, 0, 0), (0, 0, 300, 18))  # the caption names the epoch
        picture.save(tmp_path / 'reconstructions' / f'epoch-{epoch:04d}.png')
    report.write(tmp_path / 'metrics.jsonl')
    page = Page((tmp_path / 'report.html').read_text())
    colours = [image.getpixel((150, 60)) for image in page.images]
    assert len(colours) == 2 and colours[0][2] > 200 and colours[1][0] > 200


@pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium here, nor does CHROMIUM name one')
def test_page_in_a_browser(finished_run, tmp_path):
    """It draws, pictures and all, without a message on its console."""
    page = finished_run / 'report.html'
    command = [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--v=0',
               '--window-size=1280,2600', f'--screenshot={tmp_path}/page.png', page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and 'CONSOLE' not in done.stderr, done.stderr
    # pictures are the only colourful areas of the page
    colourful = [
        (np.ptp(np.asarray(Image.open(path).convert('RGB')).astype(int), axis=2) > 40).sum()
        for path in (tmp_path / 'page.png', finished_run / 'reconstructions' / 'epoch-0005.png')]
    assert colourful[0] > colourful[1] > 0


def test_commit_of_the_package(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
                       check=True, capture_output=True)
    (tmp_path / 'build' / 'timm').mkdir(parents=True)
    (tmp_path / 'file').write_text('1')
    git('init', '-q')
    git('add', 'file')
    git('commit', '-qm', 'first')
    monkeypatch.setattr(report.timm, '__file__', str(tmp_path / 'build' / 'timm' / '__init__.py'))
    monkeypatch.setattr(report, 'distribution', lambda name: SimpleNamespace(read_text=lambda file: None))
    assert report.package_commit() is None  # somebody else's repository, with an environment in it
    (tmp_path / 'upstream.lock.json').write_text('{}')
    head = subprocess.run(
        ['git', '-C', str(tmp_path), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip()
    assert report.package_commit() == head[:12]
    (tmp_path / 'file').write_text('2')
    assert report.package_commit() == head[:12] + '+'
    direct = json.dumps(dict(url='https://x', vcs_info=dict(vcs='git', commit_id='ab' * 20)))
    monkeypatch.setattr(report, 'distribution', lambda name: SimpleNamespace(read_text=lambda file: direct))
    assert report.package_commit() == 'abababababab'
