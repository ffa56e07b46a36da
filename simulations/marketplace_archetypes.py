"""The types of people who shop at the embedded marketplace. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from simulations.marketplace_text import (
    BEGINNERS,
    CHILDREN,
    ELEGANT,
    ENTHUSIASTS,
    FAMILIES,
    FUTURISTIC,
    INDUSTRIAL,
    MINIMALIST,
    NATURAL,
    OLDER,
    PLAYFUL,
    PROFESSIONALS,
    RUGGED,
    STUDENTS,
    VINTAGE,
)

OUTDOOR, CAMERAS, AUDIO, KITCHEN, OFFICE, LIVING, GARDEN, TOYS, FITNESS, PETS, TRAVEL, ARTS = range(12)


@dataclass(frozen=True, slots=True)
class Archetype:
    """A type of person: what they do (gerunds), and what that makes them buy.

    `categories` maps departments to weights; `themes`, `styles` and `audiences` come in falling order
    of liking; `tiers` are weights of low, middle and high price.
    """

    hobbies: tuple[str, ...]
    categories: dict[int, float]
    themes: tuple[int, ...]
    styles: tuple[int, ...]
    audiences: tuple[int, ...]
    tiers: tuple[float, float, float]


ARCHETYPES = (
    Archetype(
        ("hiking", "sleeping in a tent", "walking long trails"),
        {OUTDOOR: 0.6, TRAVEL: 0.15, FITNESS: 0.15, CAMERAS: 0.1},
        (0, 5),
        (RUGGED, NATURAL, FUTURISTIC),
        (ENTHUSIASTS, FAMILIES),
        (0.2, 0.4, 0.4),
    ),
    Archetype(
        ("photography", "taking portraits", "photographing old towns"),
        {CAMERAS: 0.65, TRAVEL: 0.15, OUTDOOR: 0.1, ARTS: 0.1},
        (10, 5),
        (VINTAGE, MINIMALIST, ELEGANT),
        (ENTHUSIASTS, BEGINNERS),
        (0.1, 0.4, 0.5),
    ),
    Archetype(
        ("collecting records", "listening to jazz", "playing the guitar"),
        {AUDIO: 0.65, LIVING: 0.2, OFFICE: 0.15},
        (12, 3),
        (VINTAGE, ELEGANT, INDUSTRIAL),
        (ENTHUSIASTS, PROFESSIONALS),
        (0.1, 0.3, 0.6),
    ),
    Archetype(
        ("cooking", "baking bread", "trying out new recipes"),
        {KITCHEN: 0.65, GARDEN: 0.2, LIVING: 0.15},
        (3, 6),
        (ELEGANT, NATURAL, VINTAGE),
        (FAMILIES, ENTHUSIASTS),
        (0.2, 0.5, 0.3),
    ),
    Archetype(
        ("working from home", "running my own business", "setting up a home office"),
        {OFFICE: 0.6, AUDIO: 0.2, FITNESS: 0.1, TRAVEL: 0.1},
        (4, 1),
        (MINIMALIST, FUTURISTIC, INDUSTRIAL),
        (PROFESSIONALS, ENTHUSIASTS),
        (0.2, 0.5, 0.3),
    ),
    Archetype(
        ("decorating our home", "hunting for interior ideas", "doing up an old house"),
        {LIVING: 0.65, KITCHEN: 0.15, GARDEN: 0.1, ARTS: 0.1},
        (12, 3),
        (ELEGANT, VINTAGE, INDUSTRIAL),
        (FAMILIES, PROFESSIONALS),
        (0.2, 0.4, 0.4),
    ),
    Archetype(
        ("gardening", "growing vegetables", "watching birds"),
        {GARDEN: 0.65, KITCHEN: 0.15, PETS: 0.1, OUTDOOR: 0.1},
        (6, 2),
        (NATURAL, RUGGED, VINTAGE),
        (OLDER, FAMILIES),
        (0.4, 0.4, 0.2),
    ),
    Archetype(
        ("playing with the children", "building train tracks with the kids", "reading bedtime stories"),
        {TOYS: 0.6, ARTS: 0.2, PETS: 0.1, KITCHEN: 0.1},
        (8, 7),
        (PLAYFUL, NATURAL, MINIMALIST),
        (CHILDREN, FAMILIES),
        (0.4, 0.5, 0.1),
    ),
    Archetype(
        ("training for a half marathon", "going to the gym", "doing yoga"),
        {FITNESS: 0.65, OUTDOOR: 0.15, AUDIO: 0.1, TRAVEL: 0.1},
        (9, 1),
        (FUTURISTIC, RUGGED, MINIMALIST),
        (ENTHUSIASTS, BEGINNERS),
        (0.3, 0.4, 0.3),
    ),
    Archetype(
        ("training our dog", "looking after two cats", "fostering rescue animals"),
        {PETS: 0.65, GARDEN: 0.15, LIVING: 0.1, OUTDOOR: 0.1},
        (11, 6),
        (PLAYFUL, NATURAL, RUGGED),
        (FAMILIES, BEGINNERS),
        (0.4, 0.4, 0.2),
    ),
    Archetype(
        ("travelling", "flying for work", "planning city breaks"),
        {TRAVEL: 0.6, CAMERAS: 0.2, AUDIO: 0.1, OUTDOOR: 0.1},
        (5, 1),
        (ELEGANT, MINIMALIST, FUTURISTIC),
        (PROFESSIONALS, FAMILIES),
        (0.1, 0.4, 0.5),
    ),
    Archetype(
        ("painting", "knitting", "sewing my own clothes"),
        {ARTS: 0.65, LIVING: 0.15, TOYS: 0.1, OFFICE: 0.1},
        (10, 6),
        (NATURAL, VINTAGE, PLAYFUL),
        (BEGINNERS, OLDER),
        (0.4, 0.4, 0.2),
    ),
    Archetype(
        ("studying", "furnishing my first room", "cooking for my flatmates"),
        {OFFICE: 0.3, LIVING: 0.25, KITCHEN: 0.25, AUDIO: 0.2},
        (2, 1),
        (MINIMALIST, PLAYFUL, INDUSTRIAL),
        (STUDENTS, BEGINNERS),
        (0.7, 0.25, 0.05),
    ),
    Archetype(
        ("recording music", "having game nights", "streaming games"),
        {AUDIO: 0.4, TOYS: 0.3, OFFICE: 0.3},
        (10, 3),
        (FUTURISTIC, INDUSTRIAL, PLAYFUL),
        (STUDENTS, ENTHUSIASTS),
        (0.4, 0.4, 0.2),
    ),
)
