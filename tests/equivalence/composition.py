"""Whether `forward_features` of a class is, in its code, `forward_stages(embed(...))` and nothing else."""
import ast
import inspect
import textwrap
from typing import Optional


def is_composition(model_class: type) -> bool:
    """Whether a call of `forward_features` makes the calls that a user of the two halves makes, by construction.

    The body is one statement, `return self.forward_stages(self.embed(x, ...), ...)`. Each further argument is passed on
    under its own name, and its default is that of the method which it goes to: a trace of one is a trace of the other.
    """
    function = ast.parse(textwrap.dedent(inspect.getsource(model_class.forward_features))).body[0]
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if len(body) != 1 or not isinstance(body[0], ast.Return):
        return False
    stages = call_of('forward_stages', body[0].value)
    embed = call_of('embed', stages.args[0]) if stages and len(stages.args) == 1 else None
    if embed is None or len(embed.args) != 1 or not isinstance(embed.args[0], ast.Name):
        return False
    parameters = inspect.signature(model_class.forward_features).parameters
    first, *others = [name for name in parameters if name != 'self']
    passed = {keyword.arg: method for method, call in ((model_class.embed, embed), (model_class.forward_stages, stages))
              for keyword in call.keywords}
    return (
        embed.args[0].id == first and sorted(passed) == sorted(others)
        and all(is_name(keyword.value, keyword.arg) for call in (embed, stages) for keyword in call.keywords)
        and all(inspect.signature(method).parameters[name].default == parameters[name].default
                for name, method in passed.items()))


def call_of(method: str, node: ast.expr) -> Optional[ast.Call]:
    """The node if it is a call `self.method(...)`."""
    is_call = isinstance(node, ast.Call) and ast.unparse(node.func) == f'self.{method}'
    return node if is_call else None


def is_name(node: ast.expr, name: Optional[str]) -> bool:
    return isinstance(node, ast.Name) and node.id == name
