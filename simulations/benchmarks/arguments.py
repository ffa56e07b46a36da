"""What the benchmarks' command lines have in common."""

from __future__ import annotations

from shared.errors import ConfigError


def numbers_of(text: str, option: str, least: int = 1) -> list[int]:
    """Whole numbers with commas between.

    Raises
    ------
    ConfigError
        If there is none, or something else, or one below `least`.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        example = f"{4 * least},{16 * least}"
        raise ConfigError(f"Expected {option} as numbers from {least:,} on with commas between, as in {example}.")
    return numbers
