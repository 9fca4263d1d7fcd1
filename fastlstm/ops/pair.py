"""What the op pairs share: how the arguments of one op stand in the other's, by the names in their schemas."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastlstm.ops import second
from fastlstm.ops.derivatives import gradients, gradients_of_gradients
from fastlstm.ops.dispatch import differentiable
from fastlstm.ops.vmap import Folded, Given, count, of_values, vmap_by_loop, vmap_by_op

BIASES = dict.fromkeys(("b", "b_ih", "b_hh"), ("w_ih", 1))


class OpPair:
    """`fastlstm::{stem}_fwd` and `_bwd` of a recurrence. Their schemas, in C++, say which arguments and results they have:

    fwd: tensors, x first, then states and weights, w_ and b_; flags, bools, numbers or lists of ints; `save`, and what was
        added since. Yields y, the final states, what else may be wanted, each by a flag `return_` + name; and `saved`, which
        is bwd's own business and has no gradient.
    bwd: the gradients of what fwd yields but `saved`; arguments and results of fwd, by their names; flags; `need_dx`,
        `need_dw` and, where there is one, `need_dh` for initial states. Yields d + name of fwd's arguments; "db" stands for
        both biases.

    Names are looked up here, once: a call indexes. Functions of autograd are written out, since PyTorch's compiler follows
    globals, but not what a function was made from.
    """

    def __init__(
        self,
        stem: str,
        reference: Callable[..., tuple[Tensor, ...]],
        rows: Mapping[str, int],
        per_sample: Callable[..., dict[str, Tensor] | None] | None = None,
    ) -> None:
        """`rows`: the dimension of the batch, by the names of arguments and results that have one.

        `per_sample`: see `fastlstm.ops.per_sample`; None from it means that it can't.
        """
        self.reference, self.rows, self.per_sample = reference, rows, per_sample
        ops = torch.ops.fastlstm
        self.fwd, self.bwd = getattr(ops, f"{stem}_fwd").default, getattr(ops, f"{stem}_bwd").default
        self.inputs = tuple(a.name for a in self.fwd._schema.arguments if a.name != "save")
        outputs = self.outputs = tuple(r.name for r in self.fwd._schema.returns)
        self.bwd_inputs = tuple(a.name for a in self.bwd._schema.arguments)
        self.gradients = tuple(r.name for r in self.bwd._schema.returns)
        known = (*self.inputs, *outputs)
        passed = [name for name in self.bwd_inputs if name in known]
        flags = [a.name for a in self.bwd._schema.arguments if "Tensor" not in str(a.type)]
        # places among the inputs and outputs of fwd together
        self.kept = tuple(known.index(name) for name in passed if name not in flags)
        self.flags = tuple(known.index(name) for name in passed if name in flags)
        # of each output that may not be wanted: its place, and that of the flag among the inputs
        wanted = {name: self.inputs.index(f"return_{name}") for name in outputs if f"return_{name}" in self.inputs}
        self.optional = tuple((outputs.index(name), flag) for name, flag in wanted.items())
        self.weights = tuple(k for k, name in enumerate(self.inputs) if name.startswith(("w_", "b_")))
        # those whose gradients may not be needed
        self.states = tuple(
            [self.inputs.index(s) for s in ("h0", "c0") if s in self.inputs and "need_dh" in self.bwd_inputs]
        )
        self.results = tuple(self._gradient(name) for name in self.inputs)
        biases = [name for name in self.inputs if name.startswith("b_")]
        self.biases = tuple(self.inputs.index(name) for name in biases)
        # what a gradient depends on, but for flags: those of the results, and the reference's arguments; their places in
        # the arguments of the backward's Function, which are the biases and bwd's
        self.upstream = len(outputs) - 1
        arguments = self.arguments = (*biases, *self.bwd_inputs)
        tensors = [a.name for a in self.fwd._schema.arguments if "Tensor" in str(a.type)]
        self.sources = tuple(arguments.index(name) for name in (*self.bwd_inputs[: self.upstream], *tensors))
        self.second_flags = tuple(arguments.index(name) for name in passed if name in flags)
        self.source_names = (*self.bwd_inputs[: self.upstream], *tensors, *(name for name in passed if name in flags))
        # whether there are kernels of dual numbers, and ops over elements that have weights of their own
        self.pairs = stem in ("lstm", "gru")
        if self.pairs:
            self.each_fwd, self.each_bwd = (getattr(ops, f"{stem}_{side}_each").default for side in ("fwd", "bwd"))

    def _gradient(self, name: str) -> int | None:
        """The place of an input's gradient among bwd's results."""
        names = (f"d{name}", "db") if name.startswith("b_") else (f"d{name}",)
        return next((self.gradients.index(d) for d in names if d in self.gradients), None)

    def setup_context(self, ctx: Any, inputs: tuple, output: tuple) -> None:
        known = (*inputs, *output)
        ctx.flags = tuple([known[k] for k in self.flags])
        ctx.unwanted = tuple([k for k, flag in self.optional if not inputs[flag]])
        ctx.mark_non_differentiable(output[-1], *[output[k] for k in ctx.unwanted])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[known[k] for k in self.kept])
        if not torch.compiler.is_compiling():
            # Not saved: only second derivatives depend on them, and others may edit them in place before the backward
            ctx.biases = [(b := inputs[k], b is not None and b._version) for k in self.biases]

    def backward(self, ctx: Any, apply: Callable[..., Any], grads: tuple[Tensor | None, ...]) -> tuple:
        """The gradients of all inputs; `apply` runs bwd so that they can be differentiated."""
        need = ctx.needs_input_grad
        # a compiled backward has an empty gradient for an output that nobody asked for
        given = [None if k in ctx.unwanted else g for k, g in enumerate(grads[:-1])]
        needs = [need[0], any(need[k] for k in self.weights)]
        if self.states:
            needs.append(any(need[k] for k in self.states))
        beyond = (
            torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        )
        if not beyond or torch.compiler.is_compiling():
            found = self.bwd(*given, *ctx.saved_tensors, *ctx.flags, *needs)
        else:
            arguments = (*self._biases(ctx), *given, *ctx.saved_tensors, *ctx.flags, *needs)
            if forward_ad._current_level >= 0:
                return self._by_reference(need, arguments)
            found = apply(*arguments)
        results: list[Any] = [found[d] if d is not None and need[k] else None for k, d in enumerate(self.results)]
        if self.biases:
            b_ih, b_hh = self.biases[:2]
            if need[b_ih] and self.results[b_ih] == self.results[b_hh] and need[b_hh]:
                results[b_hh] = results[b_hh].clone()  # its own: a caller may edit it in place
        return tuple(results)

    def _biases(self, ctx: Any) -> list[Tensor | None]:
        if any(b is not None and b._version != version for b, version in ctx.biases):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                "a bias, which a gradient of the gradient depends on"
            )
        return [b for b, _ in ctx.biases]

    def _by_reference(self, need: Sequence[bool], arguments: Sequence[Any]) -> tuple:
        """What `backward` returns, with the derivatives that only PyTorch's ops have."""
        tensors = [arguments[k] for k in self.sources]
        upstream, tensors = tensors[: self.upstream], tensors[self.upstream :]
        asked = [k for k in range(len(tensors)) if need[k]]
        flags = [arguments[k] for k in self.second_flags]
        found = gradients(self.reference, upstream, [*tensors, *flags], asked)
        results = dict(zip(asked, found, strict=True))
        return tuple(results.get(k) for k in range(len(need)))

    def setup_second(self, ctx: Any, arguments: tuple) -> None:
        ctx.flags = [arguments[k] for k in self.second_flags]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[arguments[k] for k in self.sources])

    def second(self, ctx: Any, grads: tuple[Tensor | None, ...]) -> tuple:
        """The gradients of the backward's arguments, from those of what it found."""
        need, n = ctx.needs_input_grad, self.upstream
        upstream, tensors = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        cotangents: list[Tensor | None] = []
        answered: set[int] = set()
        for t, d in zip(tensors, self.results, strict=False):  # results count flags as well
            if t is None or d is None or d in answered:  # a gradient that is both biases' counts once
                cotangents.append(None)
            else:
                cotangents.append(grads[d])
                answered.add(d)
        needed = [k for k, place in enumerate(self.sources) if need[place]]
        results: list[Tensor | None] = [None] * len(need)
        if needed and any(d is not None for d in cotangents):
            found = self._by_kernels(ctx, cotangents, needed) or gradients_of_gradients(
                self.reference, upstream, [*tensors, *ctx.flags], cotangents, needed
            )
            for k, gradient in zip(needed, found, strict=True):
                results[self.sources[k]] = gradient
        return tuple(results)

    def _by_kernels(self, ctx: Any, cotangents: Sequence[Tensor | None], needed: Sequence[int]) -> list[Tensor] | None:
        """The same where there are kernels, and nobody wants a graph of it; else None."""
        given = dict(zip(self.source_names, (*ctx.saved_tensors, *ctx.flags), strict=True))
        along = dict(zip(self.source_names[self.upstream :], cotangents, strict=False))
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
            return None
        if not self.pairs or not second.can(given, along):
            return None
        return second.gradients_of_gradients(given, along, [self.source_names[k] for k in needed])

    def vmap(self, apply: Callable, info: Any, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
        """The vmap rule of the forward's Function, whose `apply` it is."""
        given = Given.of(self.inputs, args, in_dims, self.rows)
        if not self._folds(given):
            if self.pairs and of_values(args):
                return vmap_by_op(self.each_fwd, info, (*in_dims, None), (*args, True))
            return vmap_by_loop(apply, info, in_dims, args)
        batch = Folded(given, count(info))
        return batch.unfold_all(self.outputs, apply(*batch.arguments(self.inputs)))

    def vmap_backward(
        self, apply: Callable, forward: Callable, info: Any, in_dims: tuple, args: tuple
    ) -> tuple[tuple, tuple]:
        """That of the backward's, `forward` being the other's `apply`; the gradients of weights are each element's own."""
        given = Given.of(self.arguments, args, in_dims, self.rows)
        # where only what came from above is mapped, the forward was not
        if not self._folds(given) or not given.mapped(self.inputs):
            if self.pairs and of_values(args):
                n = len(self.arguments) - len(self.bwd_inputs)  # biases, which bwd doesn't need
                return vmap_by_op(self.each_bwd, info, in_dims[n:], args[n:])
            return vmap_by_loop(apply, info, in_dims, args)
        batch = Folded(given, count(info))
        if not given.args["need_dw"]:
            return batch.unfold_all(self.gradients, apply(*batch.arguments(self.arguments)))
        if self.per_sample is not None and not differentiable(tuple(a for a in args if isinstance(a, Tensor))):
            found = self.per_sample(self, batch)
            if found is not None:
                return tuple([found[name] for name in self.gradients]), (0,) * len(found)

        def one(*args: Any) -> tuple[Tensor, ...]:
            """Of one element, whose rows are not apart in what the forward saved."""
            values = dict(zip(self.arguments, args, strict=True))
            with torch.no_grad():
                *_, values["saved"] = forward(*[values.get(name, False) for name in self.inputs])
            return apply(*[values[name] for name in self.arguments])

        return vmap_by_loop(one, info, in_dims, args)

    def _folds(self, given: Given) -> bool:
        """Whether what is mapped becomes rows of the batch: weights are not, nor the lengths of packed rows."""
        if given.mapped([self.inputs[k] for k in self.weights]):
            return False
        return not (given.mapped(["batch_sizes"]) and given.packed())

    def register(
        self,
        on_gpu: tuple[Callable, Callable] | None,
        fake_fwd: Callable[..., tuple[Tensor, ...]],
        biases: Mapping[str, tuple[str, int]] = BIASES,
    ) -> None:
        """The ops on a GPU; and what C++ can't say about them: the shapes of their results, and how they are mapped.

        `biases`: of each gradient that begins with "db", the weight of whose shape it has the first few sizes.
        """
        ops = self.fwd, self.bwd
        self.shapes = biases
        if on_gpu is not None:
            for op, kernel in zip(ops, on_gpu, strict=True):
                torch.library.impl(op._schema.name, "CUDA")(kernel)
        for op, fake in zip(ops, (fake_fwd, self.fake_bwd), strict=True):
            name = op._schema.name
            torch.library.register_fake(name)(fake)
            torch.library.register_vmap(name)(mapped(op))

    def fake_bwd(self, *args: Any) -> tuple[Tensor, ...]:
        """A gradient is like its argument, where it is needed and there is one, and empty elsewhere."""
        given = dict(zip(self.bwd_inputs, args, strict=True))
        x, shapes = given[self.inputs[0]], []
        of_states = given.get("need_dh", not given.get("fresh", False))
        for name in (gradient[1:] for gradient in self.gradients):
            of_weights = name == "b" or name.startswith(("w_", "b_"))
            needed = given["need_dw"] if of_weights else given["need_dx"] if name == self.inputs[0] else of_states
            source, sizes = self.shapes.get(name, (name, None))
            like = given.get(source)
            shapes.append((0,) if like is None or not needed else like.shape[:sizes])
        return tuple(x.new_empty(shape) for shape in shapes)


def mapped(op: Callable) -> Callable[..., tuple]:
    """The vmap rule of an op."""
    return lambda info, in_dims, *args: vmap_by_loop(op, info, in_dims, args)
