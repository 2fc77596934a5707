"""Stock timm in a process of its own: the published wheel, never the fork's own forward_features."""
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

HERE = Path(__file__).resolve().parent

SERVER = """
import gc, importlib, json, os, sys
sys.path[:0] = [sys.argv[2]]
answers, sys.stdout = sys.stdout, sys.stderr
import timm
assert os.path.dirname(os.path.dirname(timm.__file__)) == sys.argv[1], timm.__file__
assert sys.argv[3] == str(hasattr(timm.models, 'EmbedStagesMixin')) == str('+mim' in timm.__version__)
import torch
torch.set_num_threads(1)
gc.freeze()
gc.set_threshold(50_000, 20, 10)  # as tests/conftest.py says
for line in sys.stdin:
    function, kwargs = json.loads(line)
    module, _, function = function.rpartition('.')
    try:
        answer = {'result': getattr(importlib.import_module(module or 'probe'), function)(**kwargs)}
    except Exception as error:
        answer = {'error': f'{type(error).__name__}: {error}'}
    print(json.dumps(answer), file=answers, flush=True)
"""


class StockTimm:
    """Calls functions of `probe` in a process that has stock timm, or of the module beside it that the name tells."""
    is_fork = False

    def __init__(self, tree: Path):
        self.outstanding = False  # a call whose answer nobody has read
        environment = {**os.environ, 'PYTHONPATH': str(tree)}
        self.process = subprocess.Popen(
            [sys.executable, '-c', SERVER, str(tree), str(HERE), str(self.is_fork)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment)

    def ask(self, function: str, **kwargs) -> None:
        """Send a call, let it run while this process does the same."""
        if self.outstanding:
            self.read()  # of a test that failed before it read the answer
        self.outstanding = True
        print(json.dumps([function, kwargs]), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """Result of the last call. A failure there is raised here."""
        answer = self.read()
        if 'error' in answer:
            raise RuntimeError(f'in {"the fork" if self.is_fork else "stock timm"}: {answer["error"]}')
        return answer['result']

    def read(self) -> Dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f'stock timm ended with exit code {self.process.wait()}')
        self.outstanding = False
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        if self.outstanding:
            self.process.kill()  # it waits for somebody to read its answer
        self.process.wait()


class ForkedTimm(StockTimm):
    """The same in a process that has a woven tree, other than the installed one."""
    is_fork = True
