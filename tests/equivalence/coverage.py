"""Prints what has the protocol, and which proof covers it: `python tests/equivalence/coverage.py`."""
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cases import all_cases  # noqa: E402
from registry import registered, served, with_numbers  # noqa: E402

KINDS = ('transformer', 'hybrid', 'token', 'cnn')


def plain(path):
    """'builders.fast_vit' is for the class FastVit."""
    return path.rsplit('.', 1)[-1].replace('_', '').lower()


def main():
    names = {entry.name for entry in served()}
    numbers = with_numbers()
    cases = Counter(plain(case.model_kwargs.get('class_path', case.model)) for case in all_cases())
    print('kind         class                        registered  served  Proof 1  Proof 2  branches')
    total = Counter()
    for kind in KINDS:
        entries = [entry for entry in registered() if entry.kind == kind]
        for class_name in sorted({entry.class_name for entry in entries}):
            group = [entry for entry in entries if entry.class_name == class_name]
            has = [entry for entry in group if entry.name in names]
            in_numbers = sum(entry.name in numbers for entry in has)
            print(f'{kind:<12} {class_name:<28} {len(group):>10} {len(has):>7} {len(has):>8} {in_numbers:>8} '
                  f'{cases[plain(class_name)]:>9}')
            total.update({(kind, 'registered'): len(group), (kind, 'served'): len(has), (kind, 'numbers'): in_numbers})
    for kind in KINDS:
        print(f'{kind:<12} {"in all":<28} {total[kind, "registered"]:>10} {total[kind, "served"]:>7} '
              f'{total[kind, "served"]:>8} {total[kind, "numbers"]:>8}')
    print(f'{len(names)} of {len(registered())} registered models have embed and forward_stages')


if __name__ == '__main__':
    main()
