"""Write smaller copies of images once, for runs that read each of them hundreds of times.

    python -m timm.mim.prepare IMAGES OUT --short-side 256

Each image is resized so that its shorter side has this many pixels, and written as JPEG; a smaller image keeps its
size. Random crops then have fewer pixels to decode. They also have less detail than those of the original files: a crop
of a fifth of an image whose shorter side has 256 pixels is about 115 pixels high, and is enlarged to 224.

OUT gets the folders of IMAGES, or with `--shard-size N` tar files of N images each for `--dataset wds/`. The command
can be interrupted at any time. Repeated, it goes on where it stopped: each file that is there is complete, and is not
written again.
"""
import argparse
import io
import json
import os
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Iterable, Iterator, List, NamedTuple, Optional, Tuple

from PIL import Image
from tqdm import tqdm

from .files import to_json, write_complete
from .pretrain.data.decoding import ToMode, open_image, scale_for
from .pretrain.data.image_folder import ImageFolder
from .pretrain.errors import UserError, one_line
from .pretrain.flags import OneLineParser

__all__ = ['main', 'prepare']

_SETTINGS = 'prepare.json'
_ORIENTATION = 0x0112
_NAMED = 3  # number of unreadable files that are named


class Settings(NamedTuple):
    """How images are written: pixels of the shorter side, JPEG quality, images per shard (0 for a folder)."""
    short_side: int
    quality: int
    shard_size: int = 0


class Result(NamedTuple):
    """The number of images written, those that were there already, and the names of unreadable ones with a reason."""
    written: int
    present: int
    unreadable: List[str]


def resized(path: str, settings: Settings) -> bytes:
    """Return an image as JPEG, with its shorter side resized.

    The EXIF orientation is kept as it is, so that --exif-rotation means the same for the copy. All other metadata is
    left out.

    Args:
        path: File of the image.
        settings: Size and quality.

    Raises:
        OSError, ValueError: The image cannot be read.
    """
    with open(path, 'rb') as file:
        image = open_image(file)
        exif = Image.Exif()
        if _ORIENTATION in image.getexif():
            exif[_ORIENTATION] = image.getexif()[_ORIENTATION]
        width, height = image.size
        factor = min(1., settings.short_side / min(width, height))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        if image.format == 'JPEG' and factor < 0.5:
            # twice the size at least, so that the resize below still averages over several pixels
            scale = scale_for((height, width), (2 * size[1], 2 * size[0]))
            image.draft(image.mode, (width // scale, height // scale))
        image = ToMode('L' if image.mode in ('L', '1') or image.mode.startswith('I;16') else 'RGB')(image)
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=settings.quality, exif=exif)
    return buffer.getvalue()


def prepare(images: Path, out: Path, settings: Settings, workers: int = 0, bar: bool = False) -> Result:
    """Write smaller copies of all images of a folder.

    Args:
        images: Folder of images.
        out: Folder to write, new or of the same settings.
        settings: How to write them.
        workers: Number of processes; 0 for this one alone.
        bar: Show a progress bar.

    Raises:
        UserError: There are no images, or the folder to write has other content.
    """
    reader = _open(images)
    _claim(out, images, settings)
    names = [os.path.relpath(path, images) for path, _ in reader.samples]
    jobs = list(_shards(names, settings.shard_size) if settings.shard_size else ([name] for name in names))
    write = partial(_write_shard if settings.shard_size else _write_image, images, out, settings)
    result, pool = Result(0, 0, []), ProcessPoolExecutor(workers) if workers else None
    try:
        found = map(write, range(len(jobs)), jobs) if pool is None else pool.map(write, range(len(jobs)), jobs)
        with tqdm(total=len(names), unit='image', disable=not bar) as progress:
            for job, (written, present, unreadable) in zip(jobs, found):
                result = Result(
                    result.written + written, result.present + present, result.unreadable + unreadable)
                progress.update(len(job))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    if len(result.unreadable) == len(names):
        raise UserError(f"none of the {len(names)} images in '{images}' can be read: {result.unreadable[0]}")
    return result


def _open(images: Path) -> ImageFolder:
    if not images.is_dir():
        raise UserError(f"IMAGES: there is no folder '{images}'.")
    try:
        reader = ImageFolder(str(images))
    except RuntimeError:
        raise UserError(f"IMAGES: there is no image in '{images}'.") from None
    if reader.left_out:
        print(f'note: {reader.left_out}', file=sys.stderr)
    return reader


def _claim(out: Path, images: Path, settings: Settings) -> None:
    """Check that a folder is new or was begun with the same settings, and write down the settings in it."""
    wanted = {**settings._asdict(), 'images': str(images.resolve())}
    record = out / _SETTINGS
    if images.resolve() in (out.resolve(), *out.resolve().parents):
        raise UserError(f"OUT: '{out}' lies in the folder of the images, and would be read too.")
    if record.is_file():
        found = json.loads(record.read_text())
        if found != wanted:
            changed = ', '.join(f'{k} {found.get(k)}' for k in wanted if found.get(k) != wanted[k])
            raise UserError(f"OUT: '{out}' was written with {changed}: give the same, or another folder.")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"OUT: '{out}' is not empty and was not written by this command: give a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_complete(record, lambda path: path.write_text(to_json(wanted, indent=4)))


def _target(name: str) -> str:
    """Return the name of a copy. Other files than JPEG keep their suffix before .jpg, so that no two copies collide."""
    return name if name.lower().endswith(('.jpg', '.jpeg')) else f'{name}.jpg'


def _shards(names: List[str], size: int) -> Iterator[List[str]]:
    rest = iter(names)
    return iter(lambda: list(islice(rest, size)), [])


def _encode_all(images: Path, names: Iterable[str], settings: Settings, unreadable: List[str]) -> Iterator[Tuple]:
    """Yield the name and the bytes of each copy, and add images that cannot be read to a list."""
    for name in names:
        try:
            yield name, resized(str(images / name), settings)
        except Exception as e:  # decoders raise errors of many types for broken files
            unreadable.append(f"'{images / name}': {one_line(e)[:200]}")


def _write_image(images: Path, out: Path, settings: Settings, number: int, names: List[str]) -> Result:
    path = out / _target(names[0])
    if path.exists():
        return Result(0, 1, [])
    unreadable: List[str] = []
    for _, content in _encode_all(images, names, settings, unreadable):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_complete(path, lambda partial_path: partial_path.write_bytes(content))
    return Result(1 - len(unreadable), 0, unreadable)


def _write_shard(images: Path, out: Path, settings: Settings, number: int, names: List[str]) -> Result:
    path = out / f'train-{number:06d}.tar'
    if path.exists():
        return Result(0, len(names), [])
    unreadable: List[str] = []

    def write(partial_path: Path) -> None:
        with tarfile.open(partial_path, 'w') as archive:
            for name, content in _encode_all(images, names, settings, unreadable):
                # in the format of WebDataset the first dot ends the key
                stem, folder = os.path.basename(name).replace('.', '_'), os.path.dirname(name).replace('.', '_')
                entry = tarfile.TarInfo('/'.join(filter(None, (folder.replace(os.sep, '/'), f'{stem}.jpg'))))
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    write_complete(path, write)
    return Result(len(names) - len(unreadable), 0, unreadable)


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command and return its exit code. A user's mistake prints one line and returns 2."""
    parser = OneLineParser(
        prog='python -m timm.mim.prepare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', metavar='IMAGES', type=Path, help='folder of images')
    parser.add_argument('out', metavar='OUT', type=Path, help='folder to write')
    parser.add_argument('--short-side', type=int, default=256, metavar='N', help='pixels of the shorter side (256)')
    parser.add_argument('--quality', type=int, default=90, metavar='Q', help='JPEG quality, 1 to 95 (90)')
    parser.add_argument('--shard-size', type=int, default=0, metavar='N', help='write tar files of N images (a folder)')
    parser.add_argument(
        '-j', '--workers', type=int, default=os.cpu_count(), metavar='N', help='number of processes (one per core)')
    args = parser.parse_args(arguments)
    try:
        if args.short_side < 1 or not 1 <= args.quality <= 95 or args.shard_size < 0 or args.workers < 0:
            raise UserError('--short-side must be 1 or more, --quality 1 to 95, --shard-size and --workers 0 or more.')
        settings = Settings(args.short_side, args.quality, args.shard_size)
        result = prepare(args.images, args.out, settings, args.workers, bar=sys.stderr.isatty())
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 1
    print(f'{args.out}: {result.written} images written, {result.present} were there already')
    if result.unreadable:
        shown = '; '.join(result.unreadable[:_NAMED])
        print(f'{len(result.unreadable)} images cannot be read and are left out: {shown}', file=sys.stderr)
    return 0


if __name__ == '__main__':
    sys.exit(main())
