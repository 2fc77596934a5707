import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, and tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_compiled(request):
    """Torch makes numbers symbolic that differed between earlier graphs, and counts these towards its limit."""
    if 'compile' in request.node.name or 'graph' in request.node.name:
        torch._dynamo.reset()
