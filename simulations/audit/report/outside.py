"""What the guarantee does not cover: the list of ``docs/privacy.md``, word for word.

The documentation is not installed with the package, so that the list is here a second time.
`tests/unit/test_audit_report.py` compares the two: whoever changes one has to change the other.
"""

from __future__ import annotations

OUTSIDE: tuple[tuple[str, str], ...] = (
    (
        "The partner itself",
        ", its operators, and whoever takes its disk: raw data lie there (file permissions only; encrypt the "
        "disk). Private keys and the pseudonym key are encrypted (scrypt).",
    ),
    (
        "Who is a partner, when it takes part, how long a round takes.",
        "Message sizes are constant; times are not hidden.",
    ),
    (
        "The catalogue",
        ": item ids, titles and descriptions are public to the federation. Texts of users never enter it.",
    ),
    (
        "Metrics on real users.",
        "Nothing is measured on them by the coordinator; a simulation shows metrics because its people are not real.",
    ),
    (
        "Choices made by looking at results",
        ": another learning rate for a second run is free, the second run is not (the ledger adds it up).",
    ),
    (
        "What a population has in common.",
        "That people who buy tents buy stoves is what is learned; differential privacy hides the person.",
    ),
    (
        "That a partner refuses.",
        "A refusal crosses as the name of an error's class. None of the rules depends on the data, but an "
        "empty partner says so (EmptyHistoryError), and a machine that runs out of memory falls silent. The "
        "floor bounds what a plan may ask to be computed, and a round that crashed is drawn again to the bit,"
        " so that asking again tells nothing new.",
    ),
    (
        "The last bits of the sampler.",
        "Noise comes from uniforms of 53 bits; the difference from exact Skellam is not billed (worst case "
        "2e-16 a value; shared/hazmat/noise.py).",
    ),
    (
        "Other hardware than a CPU.",
        "That one user's gradient does not depend on the others in its batch holds to the bit on the CPUs "
        "that were tried; on CUDA it rests on the slack in the clip norm and was not measured.",
    ),
    (
        "A power failure or an old backup in the middle of a round.",
        "Ledger and session are synced before anything that hangs on secrets leaves; a session file put back "
        "from a copy could answer a step twice. Do not back up runs/.",
    ),
    (
        "Correctness of a partner's update.",
        "A partner can spoil a sum. Masks hide its update from checks; clipping at honest partners bounds "
        "nothing for a dishonest one.",
    ),
)
"""Name and text of each point; a text that begins with punctuation goes on with its name."""
