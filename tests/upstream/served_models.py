"""Pytest plugin for upstream's own tests: leaves out the largest models.

Also the tests that download weights from the Hub: there are a thousand of them, and weights load by `state_dict`, which
the other suites compare. Writes the outcome of each test to the file RESULTS when it is known.
"""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'equivalence'))
from registry import registered  # noqa: E402

LARGEST = float(os.environ.get('LARGEST', 100e6))  # parameters
NEED_WEIGHTS = {'test_model_inference', 'test_model_load_pretrained', 'test_model_features_pretrained'}


def served_models():
    """Names of the models, with SMALLEST_OF_CLASS=1 of one in each class."""
    entries = [entry for entry in registered() if entry.parameters <= LARGEST]
    if os.environ.get('SMALLEST_OF_CLASS'):
        entries = {entry.class_name: entry for entry in sorted(entries, key=lambda e: -e.parameters)}.values()
    return {entry.name for entry in entries}


SERVED = served_models()


def is_wanted(item):
    parameters = item.callspec.params if hasattr(item, 'callspec') else {}
    name = str(parameters.get('model_name', '')).split('.')[0]
    return (not name or name in SERVED) and getattr(item, 'originalname', item.name) not in NEED_WEIGHTS


def pytest_collection_modifyitems(config, items):
    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = [item for item in items if is_wanted(item)]


class Results:
    """Collects the reports of a run's controller."""

    def __init__(self, path):
        self.path = path
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.when == 'call' or not report.passed:
            # a test that passes and cannot clean up has failed
            self.outcomes[report.nodeid] = report.outcome
        if report.when == 'teardown' or report.when not in ('setup', 'call'):  # the last; of a crash the only one
            with open(self.path, 'a') as file:
                print(self.outcomes[report.nodeid], report.nodeid, file=file)


def pytest_configure(config):
    if 'RESULTS' in os.environ and not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Results(os.environ['RESULTS']))
