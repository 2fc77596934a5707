"""Interleaved timing: compared steps take turns, so that a slow phase of the machine affects all of them equally."""
import statistics
import time
from typing import Any, Callable, Dict, List

import torch
from torch.profiler import ProfilerActivity, profile

Steps = Dict[str, Callable[[], Any]]


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize()


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that a step takes, including the work that it queues on the device."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def interleave(steps: Steps, rounds: int, device: torch.device, warm_up: int = 2) -> Dict[str, List[float]]:
    """Time steps in turns.

    Args:
        steps: Steps by name.
        rounds: Number of measured rounds. The order within a round rotates.
        device: Device to wait for.
        warm_up: Number of unmeasured rounds before them.

    Returns:
        Seconds of each round by name.
    """
    names = list(steps)
    times: Dict[str, List[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed = seconds(steps[name], device)
            if number >= warm_up:
                times[name].append(elapsed)
    return times


def interleave_cpu(steps: Steps, rounds: int) -> Dict[str, List[float]]:
    """Measure the CPU time of steps that run in this process alone, in turns, after one unmeasured round.

    Args:
        steps: Steps by name.
        rounds: Number of measured rounds.

    Returns:
        CPU seconds of each round by name.
    """
    times: Dict[str, List[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if number:
                times[name].append(time.process_time() - start)
    return times


def peak_memory(step: Callable[[], Any], device: torch.device) -> float:
    """Return the peak memory of a step in MiB, beyond the memory in use before it."""
    if device.type == 'cuda':
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        synchronize(device)
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    used = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == '[memory]':
            used += event.nbytes()
            peak = max(peak, used)
    return peak / 2 ** 20


def compare(
        section: str,
        case: str,
        steps: Steps,
        rounds: int,
        device: torch.device,
        memory: bool = True,
) -> List[dict]:
    """Time steps in turns and return a row for each, with its time divided by ours, median over the rounds.

    Args:
        section: Name of the section in the report.
        case: Model, precision and batch.
        steps: Steps by name, ours first.
        rounds: Number of measured rounds.
        device: Device to wait for.
        memory: Also measure peak memory.
    """
    times = interleave(steps, rounds, device)
    ours = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = [value / reference for value, reference in zip(values, ours)]
        row = dict(
            section=section, case=case, variant=name, median_ms=statistics.median(values) * 1e3,
            min_ms=min(values) * 1e3, ratio=statistics.median(ratios), ratio_of_minima=min(values) / min(ours),
            times_ms=[round(value * 1e3, 3) for value in values])
        if memory:
            row['peak_mib'] = peak_memory(steps[name], device)
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def describe(row: dict) -> str:
    memory = f'{row["peak_mib"]:8.0f} MiB' if 'peak_mib' in row else ''
    return (
        f'  {row["case"]:<52}{row["variant"]:<22}{row["median_ms"]:10.1f} ms median{row["min_ms"]:10.1f} ms minimum'
        f'{row["ratio"]:7.3f} x ours{memory}')
