"""Editing a photo by noising it part of the way and denoising it again."""


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
