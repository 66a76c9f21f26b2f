"""Editing a photo by noising it part of the way and denoising it again."""

import inspect
from collections.abc import Mapping
from typing import Any


def steps_done(strength: float, steps: int) -> int:
    """How many of a schedule's last steps SDEdit does (Meng et al., arXiv 2108.01073).

    Args:
        strength: Share of the schedule, above 0 to 1; 1 keeps nothing of the photo.
        steps: Of the whole schedule.

    Raises:
        ValueError: ``strength`` is out of range or leaves no step.
    """
    done = int(steps * strength)
    if not 0 < strength <= 1 or done < 1:
        raise ValueError(
            f"strength is {strength} of {steps} steps; give a strength above 0 to 1 and enough steps for one"
        )
    return done


def steps_of_call(pipeline_class: type, arguments: Mapping[str, Any]) -> int | None:
    """How many denoising steps one call of a diffusers pipeline does.

    Args:
        pipeline_class: Of diffusers; what arguments leave out comes from its signature.
        arguments: Of the call.

    Returns:
        None for a pipeline without steps.

    Raises:
        ValueError: ``strength`` is out of range or leaves no step.
    """
    defaults = {name: each.default for name, each in inspect.signature(pipeline_class.__call__).parameters.items()}
    given = {**defaults, **arguments}
    if "num_inference_steps" not in given:
        return None
    schedule = given.get("timesteps") or given.get("sigmas")
    steps: int = len(schedule) if schedule else given["num_inference_steps"]
    return steps_done(given["strength"], steps) if "strength" in given else steps
