"""Results as tables for people."""
from collections import Counter
from typing import Any, Dict, List

HIDDEN = {'section', 'job', 'outcome', 'seconds', 'problem'}


def to_markdown(machine: Dict[str, str], records: List[Dict[str, Any]], left: Dict[str, int]) -> str:
    """Args:
        machine: What it ran on.
        records: The last record of each job that ended.
        left: Number of jobs that are left, by section.
    """
    lines = ['<!-- written by python -m benchmarks.gpu -->',
             ', '.join(f'{name} {value}' for name, value in machine.items()) + '.', '',
             '| section | passed | failed | skipped | left |', '| --- | --- | --- | --- | --- |']
    for section in dict.fromkeys([*(record['section'] for record in records), *left]):
        counts = Counter(record['outcome'] for record in records if record['section'] == section)
        lines.append(f'| {section} | {counts["passed"]} | {counts["failed"]} | {counts["skipped"]} | '
                     f'{left.get(section, 0)} |')
    for section in dict.fromkeys(record['section'] for record in records):
        lines += ['', f'**{section}**', '', *of_section([r for r in records if r['section'] == section])]
    return '\n'.join(lines) + '\n'


def of_section(records: List[Dict[str, Any]]) -> List[str]:
    """A row for each job. Of Proof 3 only what did not pass: the others are a thousand rows of the same."""
    if records[0]['section'] == 'proof 3':
        records = [record for record in records if record['outcome'] != 'passed']
        if not records:
            return ['Every value of every model that was compared is equal, bit for bit.']
    columns = [name for name in dict.fromkeys(name for record in records for name in record) if name not in HIDDEN]
    rows = [['job', 'outcome', *columns, 'problem'], ['---'] * (3 + len(columns))]
    for record in records:
        cells = [number(record.get(column, '')) for column in columns]
        rows.append([record['job'], record['outcome'], *cells, record.get('problem', '').replace('|', '\\|')])
    return ['| ' + ' | '.join(row) + ' |' for row in rows]


def number(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
