"""Fill in the figures of the pages: `make figures`.

A page marks a figure with comments, which readers do not see: `<!-- figure NAME -->17<!-- end -->`. This program
replaces what stands between the two. The figures come from files that commands wrote (`benchmarks/results`), or are
counted: models, lines, tests. `tests/docs/test_figures.py` compares the pages with all figures that are quick to find.
"""
import inspect
import json
import re
import statistics
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, List

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]

_FIGURE = re.compile(r'(<!-- figure ([^>]*?) -->)(.*?)(<!-- end -->)', re.DOTALL)
_quick: Dict[str, Callable[..., str]] = {}
_slow: Dict[str, Callable[..., str]] = {}


def figure(quick: bool = True) -> Callable:
    """Register a function that returns the text of a figure. Words after the figure's name are its arguments."""
    def register(function: Callable[..., str]) -> Callable[..., str]:
        (_quick if quick else _slow)[function.__name__] = function
        return function
    return register


def rewrite(text: str, slow: bool = False) -> str:
    """Return a page with its figures filled in.

    Args:
        text: Text of the page.
        slow: Fill in figures that take long to find too. Otherwise they stay as they are.

    Raises:
        ValueError: The page names a figure that does not exist, or gives it too few or too many arguments.
    """
    def fill(match: re.Match) -> str:
        name, *arguments = match[2].split()
        function = _quick.get(name) or _slow.get(name)
        try:
            if function is None:
                raise TypeError('there is no such figure')
            inspect.signature(function).bind(*arguments)
        except TypeError as error:
            raise ValueError(f'figure {match[2]}: {error}.') from None
        if name in _slow and not slow:
            return match[0]
        return match[1] + function(*arguments) + match[4]
    return _FIGURE.sub(fill, text)


@figure()
def models(method: str = '') -> str:
    """Number of models that a method serves; without one, of all registered models."""
    import timm
    from timm.mim import list_mim_models
    return str(len(list_mim_models(method) if method else timm.list_models()))


@figure()
def lines(path: str) -> str:
    """Number of lines of a file."""
    return str(len((ROOT / path).read_text().splitlines()))


@lru_cache()
def _results(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def _block(lines: List[str]) -> str:
    """Return lines with an empty line before and after them."""
    return '\n\n' + '\n'.join(lines) + '\n\n'


def _spread(values: List[float], digits: int) -> str:
    if len(values) == 1:
        return f'{values[0]:.{digits}f} (one seed)'
    if len(set(values)) == 1:  # does not depend on the seed
        return f'{values[0]:.{digits}f}'
    return f'{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'


@figure()
def digits(name: str) -> str:
    """Mean and standard deviation over seeds of a result of `make pretrain`."""
    values = [run[name] for run in _results('digits.json')['runs']]
    return _spread(values, 1) + ' %' if 'top1' in name else _spread(values, 3)


@figure()
def digits_search() -> str:
    """The settings that were tried for `make pretrain`, as a table."""
    rows = ['| learning rate | epochs | of them warm-up | masked L1 |', '|---|---|---|---|']
    for row in _results('digits.json')['search']:
        rows.append(
            f'| {row["learning_rate"]:g} | {row["epochs"]} | {row["warmup_epochs"]} | {row["masked_l1"]:.3f} |')
    return _block(rows)


@figure()
def few_labels() -> str:
    """The table and the plot of `make demo`."""
    if not (RESULTS / 'demo' / 'results.json').exists():
        return '\n\nNot measured yet on a quiet machine: `make demo` prints it.\n\n'
    found = _results('demo/results.json')
    rows = ['| labels per class | ' + ' | '.join(map(str, found['labels_per_class'])) + ' |', '|---' * 4 + '|']
    for start, values in found['accuracy'].items():
        rows.append(f'| {start} | ' + ' | '.join(_spread(column, 1) for column in zip(*values)) + ' |')
    plot = '![Test accuracy over the number of labels](../benchmarks/results/demo/accuracy.png)'
    return _block([*rows, '', plot])


@figure()
def few_labels_search() -> str:
    """The best setting of each start in the search of `make demo`, with its accuracy on the validation split."""
    if not (RESULTS / 'demo' / 'results.json').exists():
        return ''
    found = _results('demo/results.json')
    rows = ['| | best of four settings | accuracy, % |', '|---|---|---|']
    for row in found['search']:
        start = row['start']
        if row['setting'] != found['settings'][start]:
            continue
        setting = ', '.join(f'{name.replace("_", " ")} {value}' for name, value in row['setting'].items())
        rows.append(f'| {start} | {setting} | {row["accuracy"]:.1f} |')
    return _block(rows)


@figure()
def continued() -> str:
    """The table of `python -m benchmarks.continued`: linear accuracy before and after, in percent."""
    rows = [
        '| method | learning rate | layer decay | before | last epoch | best epoch, or the start | it helped |',
        '|---' * 7 + '|']
    by_setting: Dict[tuple, List[dict]] = {}
    for run in _results('continued.json')['runs']:
        by_setting.setdefault((run['method'], run['learning_rate'], run['layer_decay']), []).append(run)
    for (method, rate, decay), runs in by_setting.items():
        before, last, best = (_spread([run[name] for run in runs], 1) for name in ('before', 'last', 'best'))
        helped = sum(run['last'] > run['before'] for run in runs)
        rows.append(f'| {method} | {rate:g} | {decay:g} | {before} | {last} | {best} | {helped} of {len(runs)} seeds |')
    return _block(rows)


@figure()
def decoders() -> str:
    """The table of MAE's decoders of `python -m benchmarks.sample_methods`."""
    names = dict(
        plain='plain', cross_equal_epochs='cross, the same epochs', cross_equal_time='cross, about the same time')
    rows = ['| decoder | updates | processor time | held-out masked L1 |', '|---|---|---|---|']
    found = _results('sample_methods.json')['decoders']
    for decoder, name in names.items():
        runs = [run for run in found if run['decoder'] == decoder]
        seconds = statistics.mean(run['processor_seconds'] for run in runs)
        error = _spread([run['masked_l1'] for run in runs], 3)
        rows.append(f'| {name} | {runs[0]["updates"]} | {seconds:.0f} s | {error} |')
    return _block(rows)


@figure()
def features() -> str:
    """The table of methods that predict features of `python -m benchmarks.sample_methods`."""
    rows = [
        '| | updates | processor time | held-out loss | of a prediction that knows nothing | rank of the targets |',
        '|---' * 6 + '|']
    for run in _results('sample_methods.json')['features']:
        nothing = run.get('eval_loss_of_constant', run.get('eval_loss_of_equal_shares'))
        rows.append(
            f'| {run["method"]} | {run["update"]} | {run["processor_seconds"]:.0f} s | {run["eval_loss"]:.1f} | '
            f'{nothing:.1f} | {run["eval_target_rank"]:.1f} |')
    return _block(rows)


@figure()
def speed(section: str, model: str, variant: str) -> str:
    """Cells of the table of speed: a peer's time divided by ours in three cases, and the peak memory of both."""
    rows = [row for row in _results('cpu.json')['rows'] if row['section'] == section and row['case'].startswith(model)]
    ratios = [
        next(row['ratio'] for row in rows if row['variant'] == variant and f'{precision}, {how}' in row['case'])
        for precision, how in (('float32', 'eager'), ('bfloat16', 'eager'), ('float32', 'compiled'))]
    memory = [
        next(row['peak_mib'] for row in rows if row['variant'] == who and 'float32, eager' in row['case'])
        for who in ('ours', variant)]
    return ' | '.join(f'{ratio:.3f}' for ratio in ratios) + f' | {memory[0]:.0f}, {memory[1]:.0f}'


@figure()
def step(section: str) -> str:
    """Time of our step of a method with ViT-S, in float32 and eager mode."""
    row = next(row for row in _results('cpu.json')['rows'] if row['section'] == section and row['variant'] == 'ours')
    return f'{row["median_ms"] / 1000:.1f} s'


@figure(quick=False)
def patch() -> str:
    """What `make diff` prints, counted."""
    done = subprocess.run(
        [sys.executable, '-m', 'patchset', 'diff'], cwd=ROOT, capture_output=True, text=True, check=True)
    text = done.stdout
    files, new = len(re.findall(r'^diff --git', text, re.M)), len(re.findall(r'^new file', text, re.M))
    added, removed = len(re.findall(r'^\+(?!\+\+ )', text, re.M)), len(re.findall(r'^-(?!-- )', text, re.M))
    return f'{files} files, {new} of them new, {added} lines added and {removed} removed'


@lru_cache()
def _collected() -> List[str]:
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '--collect-only', '-q', '-p', 'no:cacheprovider'],
        cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if '::' in line]


@figure(quick=False)
def tests(*folders: str) -> str:
    """Number of tests of the suite, or of folders of it."""
    found = _collected()
    return f'{sum(line.startswith(tuple(f"tests/{name}/" for name in folders or [""])) for line in found)}' if folders \
        else f'{len(found):,}'


def main() -> None:
    for page in PAGES:
        old = page.read_text()
        new = rewrite(old, slow='--quick' not in sys.argv[1:])
        if new != old:
            page.write_text(new)
            print(page.relative_to(ROOT))


if __name__ == '__main__':
    main()
