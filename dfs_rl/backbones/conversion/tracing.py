"""Tracing of a plain PyTorch model into a graph of operators, whatever its code looks like."""

import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils._pytree import tree_any, tree_leaves

from dfs_rl.backbones.conversion.faithful import check_faithful, error_words, innermost, returned
from dfs_rl.costs.mac_counter import split_encoders
from dfs_rl.errors import ConfigError

_LOGITS_RANK = 2
_FEWEST_CLASSES = 2
_BATCH = 37
_IDENTITIES = ("dropout", "dropout_", "feature_dropout", "alpha_dropout")  # in evaluation
_BASIC_NORM = "_native_batch_norm_legit_no_training"
_ATEN = torch.ops.aten


class Traced(NamedTuple):
    """A model as a graph.

    Attributes:
        module: Its operators in order. Every node has ``meta["val"]`` (a parameter or constant, a
            fake tensor, or a number that depends on the batch size) and ``meta["flows"]`` (whether
            its values depend on the images), every operator ``meta["module"]`` (the name of its
            module). The only placeholder is the normalised images, the output the logits.
        answer: The model's own logits for the images, ``[batch, classes]``.
    """

    module: fx.GraphModule
    answer: Tensor

    @property
    def nodes(self) -> Sequence[fx.Node]:
        """All nodes in order; fx compares them by their places."""
        return cast("Sequence[fx.Node]", self.module.graph.nodes)

    @property
    def images(self) -> fx.Node:
        """The input."""
        return next(node for node in self.nodes if node.op == "placeholder")

    @property
    def logits(self) -> fx.Node:
        """The output."""
        return cast("fx.Node", self.module.graph.output_node().args[0])


def name_of(node: fx.Node) -> str:
    """Return an operator's name without overload: ``"conv2d"``."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return an operator's arguments by name, defaults included; none of Python's own."""
    schema = getattr(node.target, "_schema", None)
    parameters = [] if schema is None else schema.arguments
    values = {a.name: a.default_value for a in parameters}
    values.update(zip((a.name for a in parameters), node.args, strict=False))
    return values | dict(node.kwargs)


def batch_factor(node: fx.Node) -> int | None:
    """Return the ratio of an integer node to the batch size, ``None`` for any other node.

    Raises:
        ConfigError: If the integer is no multiple of the batch size.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.SymInt) or len(value.node.expr.free_symbols) != 1:
        return None
    (batch,) = value.node.expr.free_symbols
    factor = value.node.expr / batch
    if not factor.is_Integer:
        raise ConfigError(
            f"{_named(node.meta['module'])} computes the size {value.node.expr}, where {batch} is "
            "the number of images; only multiples of it can be converted."
        )
    return int(factor)


@split_encoders()
def trace(model: nn.Module, images: Tensor) -> Traced:
    """Trace a model in evaluation mode on normalised images, float32 ``[batch, c, h, w]``.

    All output of torch's attempts is suppressed.

    Raises:
        ConfigError: If it does not take these images, cannot be traced, or does not return logits.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"the model is a {type(model).__name__}, which torch.export cannot read; give the "
            "torch.nn.Module that it was made of."
        )
    try:
        # With gradients torch forbids some writes into views that it allows in evaluation.
        model = copy.deepcopy(model).eval().cpu().requires_grad_(requires_grad=False)
    except Exception as error:
        raise ConfigError(
            f"the model cannot be copied ({error_words(error)}); it must have parameters and "
            "buffers, nothing that was computed from them."
        ) from error
    answers = returned(model, images, "the example images")
    _check_returned(answers)
    (alone, *_) = returned(model, images[:1], "a single image", "a model for any number of images")
    wanted = [1, answers[0].shape[1]]
    if list(alone.shape) != wanted:
        raise ConfigError(
            f"the model returns {list(alone.shape)} for one image, where {wanted} is needed; does "
            "it squeeze all dimensions of size 1?"
        )
    with _silence():
        # A size that no dimension of an activation is likely to have, or torch confuses the two.
        module = _record(_read(copy.deepcopy(model), torch.cat([images[:1]] * _BATCH)))
    check_faithful(model, module, images)
    return Traced(module, answers[0])


def _check_returned(answers: Sequence[Tensor]) -> None:
    """Check that a model returns the logits of two classes or more."""
    given = ", ".join(f"{t.dtype} {list(t.shape)}" for t in answers) or "no tensor"
    (logits,) = answers if len(answers) == 1 else (torch.empty(0),)
    if logits.dim() != _LOGITS_RANK or not logits.is_floating_point():
        raise ConfigError(
            f"the model returns {given}; wrap it in a module that returns logits alone, "
            "floating-point [batch, classes] of two classes or more."
        )
    outputs = logits.shape[1]
    if outputs < _FEWEST_CLASSES:
        raise ConfigError(
            f"the model has {outputs} output{'' if outputs == 1 else 's'}, but gates learn from "
            "the logits of two classes or more; give a binary classifier two outputs, one for each "
            "class."
        )


@contextmanager
def _silence() -> Iterator[None]:
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logged)


def _read(model: nn.Module, example: Tensor) -> ExportedProgram:
    (first, *_) = inspect.signature(model.forward).parameters.values()
    shape = {0: Dim("batch")}
    shapes = ((shape,),) if first.kind is first.VAR_POSITIONAL else (shape,)
    try:
        return export(model, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # noqa: BLE001 - any error of the user's code, reported below
        where, told = innermost(model, error), error_words(error)
    try:  # to read the code instead of running it: slower, but ``len(x)`` is the batch size
        return export(model, (example,), dynamic_shapes=shapes, strict=True)
    except Exception as error:
        raise ConfigError(
            f"module {where!r} cannot be traced by torch.export ({told}); write it without choices "
            "that depend on values or on the batch size."
        ) from error


class _LostWriteError(Exception):
    """An operator writes into memory that later operators read by another name."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.node = node


def _record(program: ExportedProgram) -> fx.GraphModule:
    """Return a program as a graph without in-place writes and with fixed constants."""
    try:
        return _Recorder(program.module(check_guards=False)).record()
    except _LostWriteError as lost:
        write = lost.node
    for node in program.graph.nodes:
        if name_of(node) == "unbind":  # of which the pass makes one for this batch size alone
            for part in tuple(node.users):
                part.target = _ATEN.select.int
                part.args = (node.args[0], *(node.args[1:] or (0,)), part.args[1])
    try:  # last, since the pass replaces some operators by more basic ones
        module = program.run_decompositions({}).module(check_guards=False)
    except Exception as error:
        raise ConfigError(
            f"{_place_of(write)} writes into a view by {name_of(write)}, which torch cannot trace "
            f"({error_words(error).partition('. ')[0]}); compute a new tensor instead, as "
            "torch.cat and torch.where do."
        ) from error
    for node in module.graph.find_nodes(op="call_function", target=_ATEN.copy_.default):
        module.graph.erase_node(node)  # the new values of buffers and images
    return _Recorder(module).record()


class _Recorder(fx.Transformer):
    """Copies an exported program without in-place writes.

    What depends on neither images nor parameters is computed: its environment has the constants
    themselves, and proxies of everything else.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.new_graph.set_codegen(fx.graph.CodeGen())  # takes images, returns logits
        self.sharing: dict[int, list[fx.Node]] = {}
        self.read: set[int] = set()
        for node in module.graph.find_nodes(op="get_attr"):  # fx would add to a later error
            if isinstance(self.fetch_attr(str(node.target)), nn.Module):
                raise ConfigError(
                    f"{_place_of(node)} switches gradients or autocast inside forward, which "
                    "cannot be split into layers; take that out of its forward."
                )

    def record(self) -> fx.GraphModule:
        made = self.transform()
        made.graph.eliminate_dead_code()
        made.recompile()
        for node in made.graph.nodes:
            if node.op == "get_attr":
                node.meta = {"val": operator.attrgetter(node.target)(made)}
            node.meta["flows"] = node.op == "placeholder" or (
                node.op == "call_function"
                and batch_factor(node) is None
                and any(source.meta["flows"] for source in node.all_input_nodes)
            )
        return made

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - proxies and constants
        name = name_of(n)
        if n.op == "output":
            (logits,) = (self.env[node] for node in n.all_input_nodes)
            return self.tracer.create_arg(logits)
        if n.op == "get_attr":
            value = self.fetch_attr(str(n.target))
            result = super().run_node(n) if isinstance(value, nn.Parameter) else value
        elif n.op == "placeholder":
            result = self._described(super().run_node(n), n)
        elif name.startswith("_assert"):
            return None
        else:
            result = self._call(n, name)
        for storage in _storages(n.meta.get("val")):
            self.sharing.setdefault(storage, []).append(n)
        return result

    def _call(self, n: fx.Node, name: str) -> Any:  # noqa: ANN401
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        used = args[1:] if name in ("new_zeros", "new_ones", "new_full") else args
        constant = not tree_any(lambda value: isinstance(value, fx.Proxy), (used, kwargs))
        changed = _changed_in_place(n)
        self._check_write(n, changed, constant=constant)
        first = n.args[0] if n.args else None
        if name in _IDENTITIES or (isinstance(first, fx.Node) and name_of(first) == _BASIC_NORM):
            return args[0]
        if constant:
            values = fx.node.map_aggregate(
                args, lambda a: torch.empty(0) if isinstance(a, fx.Proxy) else a
            )
            with torch.no_grad():
                return cast("Any", n.target)(*values, **kwargs)
        if name in ("copy", "copy_"):
            value = self._copied(n, args[1])
        else:
            target = n.target if changed is None else _functional(n.target)
            value = self._emit(n, target, args, kwargs)
        if changed is not None:
            self.env[changed] = value
        return value

    def _emit(self, n: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Proxy:  # noqa: ANN401
        if target is _ATEN.view.default:  # a channels_last activation has no such view
            target = _ATEN.reshape.default
        if name_of(n) == _BASIC_NORM:  # as models write it
            target, args = _ATEN.batch_norm.default, (*args[:5], False, *args[5:], False)
        return self._described(self.tracer.create_proxy("call_function", target, args, kwargs), n)

    def _copied(self, n: fx.Node, source: Any) -> Any:  # noqa: ANN401
        """Return the values that ``copy_`` writes, by operators that have gradients."""
        target = self.env[cast("fx.Node", n.args[0])]
        wanted, given = (cast("fx.Node", node).meta["val"] for node in n.args[:2])
        if given.shape != wanted.shape:
            source = self._emit(n, _ATEN.expand_as.default, (source, target), {})
        if given.dtype != wanted.dtype:
            source = self._emit(n, _ATEN.type_as.default, (source, target), {})
        return source

    def _described(self, proxy: fx.Proxy, n: fx.Node) -> fx.Proxy:
        value = n.meta.get("val")
        if name_of(n) == _BASIC_NORM:
            value, *_ = cast("Sequence[Tensor]", value)
        proxy.node.meta = {"val": value, "module": _module_of(n)}
        return proxy

    def _check_write(self, n: fx.Node, changed: fx.Node | None, *, constant: bool) -> None:
        """Raise _LostWriteError if another node shows what an operator writes."""
        written = _storages([target.meta.get("val") for target in _written(n)])
        if constant:  # computed once, by really writing
            lost = bool(written & self.read)
        else:
            others = [o for storage in written for o in self.sharing[storage] if o is not changed]
            read_later = any(user > n for other in others for user in other.users)
            lost = read_later or (bool(written) and changed is None)
            self.read |= _storages([source.meta.get("val") for source in n.all_input_nodes])
        if lost:
            raise _LostWriteError(n)


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that an operator writes into."""
    schema = getattr(node.target, "_schema", None)
    values = arguments_of(node)
    written = [
        values[p.name]
        for p in ([] if schema is None else schema.arguments)
        if p.alias_info is not None and p.alias_info.is_write
    ]
    return [leaf for leaf in tree_leaves(written) if isinstance(leaf, fx.Node)]


def _storages(values: object) -> set[int]:
    return {t.untyped_storage()._cdata for t in tree_leaves(values) if isinstance(t, Tensor)}


def _changed_in_place(node: fx.Node) -> fx.Node | None:
    """Return the node that an operator overwrites, if the operator has an out-of-place form."""
    name = name_of(node)
    if not name.endswith("_") or name.startswith("_") or _functional(node.target) is None:
        return None
    return cast("fx.Node", node.args[0])


def _functional(target: Any) -> Any:  # noqa: ANN401 - operators have no common type
    """Return the out-of-place form of an in-place operator, or ``None``."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    return getattr(getattr(_ATEN, name.removesuffix("_"), None), overload, None)


def _place_of(node: fx.Node) -> str:
    return _named(_module_of(node))


def _named(module: str) -> str:
    return f"module {module!r}" if module else "the model itself"


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""
