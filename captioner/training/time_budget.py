"""How much of a recipe fits into the time there is.

In: a configuration, what an epoch of each phase costs on this machine, the seconds there are. Out: the
configuration with fewer epochs. A schedule is a share of its phase, so a shortened phase still ends at its
low learning rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from captioner.config import Config


def within(config: Config, costs: Mapping[str, float], seconds: float) -> Config:
    """The configuration with as many epochs of each phase as fit, in the proportions of the recipe.

    A phase that would be left without a single epoch is left out, the last one first; the first phase always
    gets one.

    Args:
        config: as the recipe has it.
        costs: seconds an epoch of each phase takes.
        seconds: there are for all of them.

    >>> from captioner.config import PhaseConfig
    >>> recipe = Config(phases={"a": PhaseConfig(epochs=6), "b": PhaseConfig(epochs=4)})
    >>> {name: phase.epochs for name, phase in within(recipe, {"a": 10, "b": 20}, 70).phases.items()}
    {'a': 3, 'b': 2}
    >>> {name: phase.epochs for name, phase in within(recipe, {"a": 10, "b": 20}, 25).phases.items()}
    {'a': 2}
    """
    wanted = {name: phase.epochs for name, phase in config.phases.items()}
    names = list(wanted)
    while len(names) > 1 and sum(costs[name] for name in names) > seconds:
        names.pop()
    epochs = {name: min(1, wanted[name]) for name in names}
    left = seconds - sum(costs[name] * epochs[name] for name in names)
    while open_phases := [n for n in names if epochs[n] < wanted[n] and costs[n] <= left]:
        behind = min(open_phases, key=lambda name: epochs[name] / wanted[name])
        epochs[behind] += 1
        left -= costs[behind]
    phases = {name: dataclasses.replace(config.phases[name], epochs=epochs[name]) for name in names}
    return dataclasses.replace(config, phases=phases)
