"""Tracing of a plain PyTorch model into a graph of operators, whatever its code looks like."""

import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils._pytree import tree_leaves

from dfs_rl.backbones.conversion.faithful import (
    AS_TAKEN,
    check_faithful,
    error_words,
    follow,
    innermost,
    returned,
)
from dfs_rl.costs.mac_counter import split_encoders
from dfs_rl.errors import ConfigError

_LOGITS_RANK = 2
_FEWEST_CLASSES = 2
_BATCH = 37
_NOT_CONSTANT = (InputKind.USER_INPUT, InputKind.PARAMETER)
_BASIC_NORM = "_native_batch_norm_legit_no_training"


class Traced(NamedTuple):
    """A model as a graph.

    Attributes:
        graph: Operators in order. Every node has ``meta["val"]`` (a fake tensor, or a number that
            depends on the batch size), ``meta["module"]`` (the name of its module) and
            ``meta["flows"]`` (whether its values depend on the images). The only placeholder is the
            normalised images.
        tensors: Parameters and constants by the names in the graph's ``get_attr`` nodes.
        n_classes: Columns of the logits.
        answer: The model's own logits for the images, ``[batch, classes]``.
    """

    graph: fx.Graph
    tensors: Mapping[str, Tensor]
    n_classes: int
    answer: Tensor

    @property
    def images(self) -> fx.Node:
        """The input."""
        return cast("fx.Node", next(n for n in self.graph.nodes if n.op == "placeholder"))

    @property
    def logits(self) -> fx.Node:
        """The output."""
        output = next(node for node in self.graph.nodes if node.op == "output")
        return cast("fx.Node", output.args[0])


def name_of(node: fx.Node) -> str:
    """Return an operator's name without overload: ``"conv2d"``."""
    return str(node.target).removeprefix("aten.").partition(".")[0]


def batch_factor(node: fx.Node) -> int | None:
    """Return the ratio of an integer node to the batch size, ``None`` for any other node."""
    value = node.meta.get("val")
    if not isinstance(value, torch.SymInt):
        return None
    symbols = value.node.expr.free_symbols
    return int(value.node.expr / next(iter(symbols))) if len(symbols) == 1 else None


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
    # A size that no dimension of an activation is likely to have, or torch confuses the two.
    example = torch.cat([images[:1]] * _BATCH)
    try:
        # With gradients torch forbids some writes into views that it allows in evaluation.
        model = copy.deepcopy(model).eval().cpu().requires_grad_(requires_grad=False)
    except Exception as error:
        raise ConfigError(
            f"the model cannot be copied ({error_words(error)}); it must have parameters and "
            f"buffers, "
            "nothing that was computed from them."
        ) from error
    answers = returned(model, images, "the example images", AS_TAKEN)
    _check_returned(answers)
    alone = returned(model, images[:1], "a single image", "a model for any number of images")
    wanted = [1, answers[0].shape[1]]
    if list(alone[0].shape) != wanted:
        raise ConfigError(
            f"the model returns {list(alone[0].shape)} for one image, where {wanted} is needed; "
            "does it squeeze all dimensions of size 1?"
        )
    with _silence():
        program = _without_shared_writes(_read(model, example))
    traced = _Recorder(program, answers[0]).run()
    check_faithful(model, traced.graph, traced.tensors, images)
    return traced


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
    running: list[str] = []
    hooks = follow(model, running)
    try:
        return _export(model, example, strict=False)
    except Exception as error:  # noqa: BLE001 - any error of the user's code, reported below
        where = innermost(model, running)
        for hook in hooks:
            hook.remove()
        return _export_strictly(model, example, where, error)


def _export(model: nn.Module, example: Tensor, *, strict: bool) -> ExportedProgram:
    (first, *_) = inspect.signature(model.forward).parameters.values()
    shape = {0: Dim("batch")}
    shapes = ((shape,),) if first.kind is first.VAR_POSITIONAL else (shape,)
    return export(model, (example,), dynamic_shapes=shapes, strict=strict)


def _export_strictly(
    model: nn.Module, example: Tensor, where: str, first: Exception
) -> ExportedProgram:
    """Read the model's code instead of running it: slower, but ``len(x)`` is the batch size.

    Raises:
        ConfigError: If that fails as well.
    """
    try:
        return _export(model, example, strict=True)
    except Exception as error:
        raise ConfigError(
            f"module {where!r} cannot be traced by torch.export ({error_words(first)}); write it "
            f"without "
            "choices that depend on values or on the batch size."
        ) from error


def _without_shared_writes(program: ExportedProgram) -> ExportedProgram:
    """Return a program without writes into memory that several tensors share.

    Raises:
        ConfigError: If torch cannot do without such a write.
    """
    write = _shared_write(program)
    if write is None:
        return program  # the pass below would replace some operators by more basic ones
    for node in program.graph.nodes:
        if name_of(node) == "unbind":  # of which that pass makes one for this batch size alone
            for part in tuple(node.users):
                part.target = torch.ops.aten.select.int
                part.args = (node.args[0], *(node.args[1:] or (0,)), part.args[1])
    try:
        return cast("ExportedProgram", program.run_decompositions({}))
    except Exception as error:
        raise ConfigError(
            f"{_place_of(write)} writes into a view by {name_of(write)}, which torch cannot trace "
            f"({error_words(error).partition('. ')[0]}); compute a new tensor instead, as "
            f"torch.cat and "
            "torch.where do."
        ) from error


def _shared_write(program: ExportedProgram) -> fx.Node | None:
    """Return the first operator whose write ``_Recorder`` would lose."""
    constants = {node for node, spec in _inputs(program) if spec.kind not in _NOT_CONSTANT}
    place = {node: i for i, node in enumerate(program.graph.nodes)}
    sharing: dict[int, list[fx.Node]] = {}
    read: set[int] = set()
    for node in program.graph.nodes:
        written = _storages([target.meta.get("val") for target in _written(node)])
        if node.op == "call_function" and _is_constant(node, constants):
            constants.add(node)  # computed once, by really writing
            lost = bool(written & read)
        else:
            changed = _changed_in_place(node)
            others = [n for storage in written for n in sharing[storage] if n is not changed]
            read_later = any(place[user] > place[node] for n in others for user in n.users)
            lost = read_later or (bool(written) and changed is None)
            read |= _storages([source.meta.get("val") for source in node.all_input_nodes])
        if lost:
            return cast("fx.Node", node)
        for storage in _storages(node.meta.get("val")):
            sharing.setdefault(storage, []).append(node)
    return None


def _written(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that an operator writes into."""
    schema = getattr(node.target, "_schema", None)
    parameters = [] if schema is None else schema.arguments
    values = dict(zip((p.name for p in parameters), node.args, strict=False)) | dict(node.kwargs)
    names = [p.name for p in parameters if p.alias_info is not None and p.alias_info.is_write]
    leaves = tree_leaves([values.get(name) for name in names])
    return [leaf for leaf in leaves if isinstance(leaf, fx.Node)]


def _storages(values: object) -> set[int]:
    return {t.untyped_storage()._cdata for t in tree_leaves(values) if isinstance(t, Tensor)}


class _Recorder:
    """Copies an exported program into a graph without in-place writes and with fixed constants."""

    def __init__(self, program: ExportedProgram, answer: Tensor) -> None:
        self.program = program
        self.answer = answer
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.new: dict[fx.Node, fx.Node] = {}

    def run(self) -> Traced:
        """Copy all nodes."""
        specs = dict(_inputs(self.program))
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._copy_input(node, specs[node])
            elif node.op == "call_function":
                self._copy_operator(node)
            elif node.op == "get_attr":
                raise ConfigError(
                    f"{_place_of(node)} switches gradients or autocast inside forward, which "
                    "cannot be split into layers; take that out of its forward."
                )
        (logits,) = (self._get(node) for node in _outputs(self.program))
        self.graph.output(logits)
        self.graph.eliminate_dead_code()
        used = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        return Traced(self.graph, tensors, self.answer.shape[1], self.answer)

    def _copy_input(self, node: fx.Node, spec: InputSpec) -> None:
        program = self.program
        if spec.kind == InputKind.USER_INPUT:
            self._describe(self._set(node, self.graph.placeholder("hidden")), node, flows=True)
            return
        name = str(spec.target)
        if spec.kind == InputKind.PARAMETER:
            self.tensors[name] = program.state_dict[name]
            self._describe(self._set(node, self.graph.get_attr(name)), node, flows=False)
            return
        value = program.constants.get(name)
        value = program.state_dict[name] if value is None else value
        self.constants[node] = value.detach().clone() if isinstance(value, Tensor) else value
        self.tensors[name] = self.constants[node]

    def _copy_operator(self, node: fx.Node) -> None:
        name = name_of(node)
        if name.startswith("_assert") or name == "_guards_fn":
            return
        if name in ("dropout", "dropout_", "feature_dropout", "alpha_dropout"):  # identities here
            self._alias(node, node.args[0])
            return
        if node.target is operator.getitem and name_of(node.all_input_nodes[0]) == _BASIC_NORM:
            self._alias(node, node.args[0])
            return
        if _is_constant(node, self.constants):
            self.constants[node] = self._compute(node)
            return
        changed = _changed_in_place(node)
        if name.removesuffix("_") == "copy":
            self.new[node] = self._copy_values(node)
        else:
            self._emit(node, node.target if changed is None else _functional(node.target))
        if changed is not None:
            self.new[changed] = self.new[node]
            self.constants.pop(changed, None)

    def _emit(self, node: fx.Node, target: Any) -> None:  # noqa: ANN401 - as fx has it
        args, kwargs = node.args, dict(node.kwargs)
        if target is torch.ops.aten.view.default:  # a channels_last activation has no such view
            target = torch.ops.aten.reshape.default
        if name_of(node) == _BASIC_NORM:  # as models write it
            target, args = torch.ops.aten.batch_norm.default, (*args[:5], False, *args[5:], False)
        kwargs.pop("device", None)
        self._call(node, target, fx.map_arg(args, self._get), fx.map_arg(kwargs, self._get))

    def _copy_values(self, node: fx.Node) -> fx.Node:
        """Return the values that ``copy_`` writes, by operators that have gradients."""
        target, source = (self._get(cast("fx.Node", argument)) for argument in node.args[:2])
        wanted, given = target.meta["val"], source.meta["val"]
        if given.shape != wanted.shape:
            source = self._call(node, torch.ops.aten.expand_as.default, (source, target), {})
        if given.dtype != wanted.dtype:
            source = self._call(node, torch.ops.aten.type_as.default, (source, target), {})
        return source

    def _call(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Node:  # noqa: ANN401
        copied = self._set(node, self.graph.call_function(target, args, kwargs))
        flows = batch_factor(node) is None and any(n.meta["flows"] for n in copied.all_input_nodes)
        self._describe(copied, node, flows=flows)
        return copied

    def _compute(self, node: fx.Node) -> Any:  # noqa: ANN401 - whatever the operator returns
        def value(n: fx.Node) -> Any:  # noqa: ANN401
            return self.constants.get(n, torch.empty(0))

        args = fx.map_arg(node.args, value)
        kwargs = dict(cast("Any", fx.map_arg(node.kwargs, value)))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        with torch.no_grad():
            return cast("Any", node.target)(*args, **kwargs)

    def _get(self, node: fx.Node) -> fx.Node:
        if node not in self.new and node in self.constants:
            name = self._name_of_constant(node)
            self._describe(self._set(node, self.graph.get_attr(name)), node, flows=False)
        return self.new[node]

    def _name_of_constant(self, node: fx.Node) -> str:
        value = self.constants[node]
        known = (name for name, tensor in self.tensors.items() if tensor is value)
        name = next(known, f"constant_{len(self.tensors)}")
        self.tensors[name] = value
        return name

    def _alias(self, node: fx.Node, source: Any) -> None:  # noqa: ANN401 - an argument of a node
        if source in self.constants:
            self.constants[node] = self.constants[source]
        else:
            self.new[node] = self.new[source]

    def _set(self, node: fx.Node, copied: fx.Node) -> fx.Node:
        self.new[node] = copied
        return copied

    def _describe(self, copied: fx.Node, node: fx.Node, *, flows: bool) -> None:
        value = node.meta.get("val")
        if name_of(node) == _BASIC_NORM:
            value, *_ = cast("Sequence[Tensor]", value)
        copied.meta = {"val": value, "module": _module_of(node), "flows": flows}


def _inputs(program: ExportedProgram) -> list[tuple[fx.Node, InputSpec]]:
    """Return the program's inputs, parameters and constants with torch's description of each."""
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    return [(n, specs[n.name]) for n in program.graph.nodes if n.op == "placeholder"]


def _is_constant(node: fx.Node, constants: Container[fx.Node]) -> bool:
    """Return whether an operator's result depends on neither images nor parameters."""
    inputs = node.all_input_nodes
    if node.target in (operator.mul, operator.add, operator.floordiv) or any(
        isinstance(n.meta.get("val"), torch.SymInt) for n in [*inputs, node]
    ):
        return False
    shape_alone = name_of(node) in {f"new_{kind}" for kind in ("zeros", "ones", "full")}
    return all(n in constants for n in (inputs[1:] if shape_alone else inputs))


def _changed_in_place(node: fx.Node) -> fx.Node | None:
    """Return the node that an operator overwrites, if the operator has an out-of-place form."""
    name = name_of(node)
    if not name.endswith("_") or name.startswith("_") or _functional(node.target) is None:
        return None
    return cast("fx.Node", node.args[0])


def _functional(target: Any) -> Any:  # noqa: ANN401 - operators have no common type
    """Return the out-of-place form of an in-place operator, or ``None``."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    return getattr(packet, overload, None)


def _place_of(node: fx.Node) -> str:
    return f"module {_module_of(node)!r}" if _module_of(node) else "the model itself"


def _module_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path)


def _outputs(program: ExportedProgram) -> list[fx.Node]:
    """Return the model's outputs, without its writes into buffers and images."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    specs = program.graph_signature.output_specs
    results = [
        node
        for node, spec in zip(output.args[0], specs, strict=True)
        if spec.kind == OutputKind.USER_OUTPUT
    ]
    return [node for node in results if isinstance(node, fx.Node)]
