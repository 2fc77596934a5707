"""Write results as Markdown tables."""
from collections import Counter
from typing import Any, Dict, List

HIDDEN = {'section', 'job', 'outcome', 'seconds', 'problem'}


def to_markdown(machine: Dict[str, str], records: List[Dict[str, Any]], left: Dict[str, int]) -> str:
    """Return the tables of all sections.

    Args:
        machine: Description of the machine.
        records: The last record of each finished job.
        left: Number of remaining jobs by section.
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
    """Return a table row for each job. For Proof 3, omit the rows of the many passed jobs."""
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
