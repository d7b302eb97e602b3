"""Where a step's time goes: the convolutions that a variant shares with the plain network, and everything else."""

import os
import statistics
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from .benchmark_steps import COMPILED, IN_ONNX_RUNTIME, PLAIN, Step

# The name of an operator and, for a convolution, the shape of its weight.
_Operator = tuple[str, tuple[int, ...]]


def operator_statistics(steps: Mapping[str, Step], repeats: int) -> dict[str, dict[str, Any]]:
    """Run all steps in turn under PyTorch's profiler, and compare what they do beside convolutions.

    The convolutions take most of the time and vary most, by what else the machine does, although they are the same in
    all variants. What attention costs is in the rest.

    Args:
        steps: The steps on a CPU, of which one is the plain network's.
        repeats: The number of turns.

    Returns:
        For each step medians over its turns, in milliseconds: 'convolutions_ms', those whose weights have the shape of
        one of the plain network's convolutions; 'rest_ms', everything else, an attention's own convolutions included;
        and 'operators_ms', the rest by operator, whose sum is near 'rest_ms' alone. 'ratio_rest' is the ratio to the
        plain network's time if the convolutions took what the plain network's take, and 'kept_mib' what autograd keeps
        between the forward and the backward pass, in MiB and beside the parameters. The profiler does not see inside of
        what torch.compile or ONNX Runtime made: there is nothing about such steps.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it writes two lines for each step
    steps = {name: step for name, step in steps.items() if not name.endswith((COMPILED, IN_ONNX_RUNTIME))}
    turns: dict[str, list[dict[_Operator, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            turns[name].append(_times(step))
    shared = {operator for turn in turns[PLAIN] for operator in turn if operator[1]}
    found = {name: _medians(own, shared) for name, own in turns.items()}
    plain = found[PLAIN]
    for name, own in found.items():
        own["kept_mib"] = _kept_for_gradients(steps[name]) / 2**20
        own["ratio_rest"] = (plain["convolutions_ms"] + own["rest_ms"]) / (plain["convolutions_ms"] + plain["rest_ms"])
    return found


def _kept_for_gradients(step: Step) -> int:
    """The bytes that autograd keeps between a step's forward and its backward pass, beside the parameters."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base  # a layer may save its weight transposed
        if not isinstance(base, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _times(step: Step) -> dict[_Operator, float]:
    """The time of each operator in milliseconds, without the operators that it calls."""
    times: dict[_Operator, float] = {}
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        step()
    for event in found.key_averages(group_by_input_shape=True):
        # The weight follows the gradient and the input.
        shapes = [tuple(shape) for shape in event.input_shapes if len(shape) == 4] if "conv" in event.key else []
        operator = event.key, shapes[-1] if shapes else ()
        times[operator] = times.get(operator, 0.0) + event.self_cpu_time_total / 1000
    return times


def _medians(turns: list[dict[_Operator, float]], shared: set[_Operator]) -> dict[str, Any]:
    names = {operator[0] for turn in turns for operator in turn if operator not in shared}
    rest = [dict.fromkeys(names, 0.0) for _ in turns]
    for turn, own in zip(turns, rest, strict=True):
        for operator, time in turn.items():
            if operator not in shared:
                own[operator[0]] += time
    convolutions = [sum(time for operator, time in turn.items() if operator in shared) for turn in turns]
    by_name = {name: statistics.median(own[name] for own in rest) for name in names}
    return dict(
        convolutions_ms=statistics.median(convolutions),
        rest_ms=statistics.median(sum(own.values()) for own in rest),
        operators_ms=dict(sorted(by_name.items(), key=lambda item: -item[1])),
    )
