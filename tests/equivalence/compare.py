"""Where two probes differ, in a line that tells what to look at."""
from typing import Dict, List, Optional


def first_difference(ours: List[str], stock: List[str]) -> Optional[str]:
    """The first operation that differs, None where all are equal."""
    for i, (our_line, stock_line) in enumerate(zip(ours, stock)):
        if our_line != stock_line:
            return f'operation {i}: stock has\n  {stock_line}\nand the fork\n  {our_line}'
    if len(ours) != len(stock):
        return f'stock has {len(stock)} operations, the fork {len(ours)}'
    return None


def differing(ours: Dict[str, str], stock: Dict[str, str]) -> List[str]:
    """Names of the values that differ or that one side lacks, order included."""
    if list(ours) != list(stock):
        return ['names: ' + ', '.join(sorted(set(ours) ^ set(stock)) or ['their order'])]
    return [name for name in stock if ours[name] != stock[name]]
