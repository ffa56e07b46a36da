"""The errors of Veilrec.

::

    VeilrecError                     exit code 1
    ├── ConfigError                  10  a wrong option, key or value
    ├── DataError                    20  a file that does not hold what was expected
    │   ├── SchemaError              21  a missing or mistyped column or field
    │   └── EmptyHistoryError        22  nothing is left to train or rank on
    ├── PrivacyError                 30  the round ends and nothing is released
    │   ├── BudgetExhaustedError     31  the ledger has no epsilon or delta left for the plan
    │   ├── PolicyViolationError     32  a plan below the partner's floor
    │   ├── SensitivityError         33  one user could move the sum by more than C
    │   ├── AccountingError          34  two accountants disagree, or a plan cannot be accounted
    │   └── LedgerError              35  a ledger that was changed, rolled back or cannot be written
    ├── ProtocolError                40  the other side did not keep to the protocol
    │   ├── AdapterMismatchError     41  an adapter of another shape or another base model
    │   ├── CohortTooSmallError      42  fewer partners than the quorum
    │   ├── ReplayError              43  a message out of its turn: repeated, too early, too late
    │   ├── UnmaskError              44  a request to open a sum that must stay closed, or shares that do not fit
    │   └── VersionMismatchError     45  the other side speaks another version
    ├── IntegrityError               50  something is not what was written or signed
    │   ├── CheckpointError          51
    │   └── InvalidSignatureError    52
    └── RankingError                 60
        ├── StaleIndexError          61  an index of another catalogue or base model
        └── UnknownUserError         62

A message says ``Expected name=value ...`` and never holds a user's text or id: an error may be read
by others than the partner. `wire_name` is all of it that may cross to the other side.
"""

from __future__ import annotations


class VeilrecError(Exception):
    """The root of all errors that Veilrec raises on purpose."""

    exit_code = 1

    @property
    def wire_name(self) -> str:
        """The name of the class: all that may leave the machine on which the error was raised."""
        return type(self).__name__


class ConfigError(VeilrecError):
    """An option, key or value that cannot be used."""

    exit_code = 10


class DataError(VeilrecError):
    """A file that does not hold what was expected; the message names file, row and column."""

    exit_code = 20


class SchemaError(DataError):
    """A missing or mistyped column or field."""

    exit_code = 21


class EmptyHistoryError(DataError):
    """Nothing is left to train or rank on."""

    exit_code = 22


class PrivacyError(VeilrecError):
    """A step that is not covered by the privacy plan. Ends the round; nothing is released."""

    exit_code = 30


class BudgetExhaustedError(PrivacyError):
    """The partner's ledger has no epsilon or delta left for what is asked."""

    exit_code = 31


class PolicyViolationError(PrivacyError):
    """A plan that a partner, or the law of the run mode, does not allow."""

    exit_code = 32


class SensitivityError(PrivacyError):
    """One user could move the sum by more than the clip norm."""

    exit_code = 33


class AccountingError(PrivacyError):
    """A plan that cannot be accounted, or on which two accountants disagree."""

    exit_code = 34


class LedgerError(PrivacyError):
    """A ledger that was changed, rolled back, or cannot be written."""

    exit_code = 35


class ProtocolError(VeilrecError):
    """The other side did not keep to the protocol."""

    exit_code = 40


class AdapterMismatchError(ProtocolError):
    """An adapter of another shape, or for another base model."""

    exit_code = 41


class CohortTooSmallError(ProtocolError):
    """Fewer partners than the quorum."""

    exit_code = 42


class ReplayError(ProtocolError):
    """A message out of its turn: repeated, for a round that is over or has not begun."""

    exit_code = 43


class UnmaskError(ProtocolError):
    """A request to open a sum that must stay closed, or shares that do not fit together."""

    exit_code = 44


class VersionMismatchError(ProtocolError):
    """The other side speaks another version of the exchanges."""

    exit_code = 45


class IntegrityError(VeilrecError):
    """Something is not what was written or signed."""

    exit_code = 50


class CheckpointError(IntegrityError):
    """A checkpoint that cannot be resumed from."""

    exit_code = 51


class InvalidSignatureError(IntegrityError):
    """A signature that is not of the key, the purpose or the content that were expected."""

    exit_code = 52


class RankingError(VeilrecError):
    """A ranking request that cannot be answered."""

    exit_code = 60


class StaleIndexError(RankingError):
    """An index of another catalogue, or made by another base model."""

    exit_code = 61


class UnknownUserError(RankingError):
    """A user of whom the partner holds nothing."""

    exit_code = 62
