"""What a resumed run should know of its schedule: MMEngine takes the checkpoint's, not the config's."""

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

# Arguments of a scheduler that are no settings of it.
_NOT_SETTINGS = {"self", "optimizer", "last_step", "verbose", "args", "kwargs"}
# Milestones are a Counter.
_COMPARED = (int, float, bool, Counter)


def changed_settings(schedulers: Any, states: Any) -> Iterator[str]:
    """Yield a phrase per setting of a schedule that a config gives otherwise than a checkpoint.

    MMEngine restores the whole state of a scheduler, settings included, so that a run which is resumed with more epochs
    keeps the learning rate of the last one (``end`` is then that of the run before).

    Args:
        schedulers: Those that a runner built from its config: a list, or a dict of lists.
        states: ``param_schedulers`` of the checkpoint.
    """
    if isinstance(schedulers, dict) and isinstance(states, dict):
        for name in schedulers.keys() & states.keys():
            yield from changed_settings(schedulers[name], states[name])
    elif isinstance(schedulers, list) and isinstance(states, list):
        for scheduler, state in zip(schedulers, states, strict=False):
            for name in sorted(_settings(scheduler) & state.keys()):
                configured, restored = getattr(scheduler, name), state[name]
                if type(configured) in _COMPARED and type(configured) is type(restored) and configured != restored:
                    kind = type(scheduler).__name__
                    yield f"{kind}: {name}={_shown(restored)} in the checkpoint, {_shown(configured)} in the config"


def _settings(scheduler: Any) -> set[str]:
    constructors = (vars(cls).get("__init__") for cls in type(scheduler).__mro__[:-1])
    arguments = {name for own in constructors if own is not None for name in inspect.signature(own).parameters}
    return (arguments - _NOT_SETTINGS) & vars(scheduler).keys()


def _shown(value: Any) -> Any:
    return list(value) if isinstance(value, Counter) else value
