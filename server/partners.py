"""``partners.json``: whom the coordinator has enrolled, and whom it has revoked.

An entry keeps the partner's own signed request. Nobody is taken over: a name goes to other keys only by a request
that a key of before has signed, and what was revoked stays revoked, name and keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shared.enrolment import Document, EnrolmentRequest, NodeText, PartnerName, parse, read_bytes
from shared.errors import ConfigError, InvalidSignatureError, ReplayError
from shared.files import write_bytes

PARTNERS_FILE = "partners.json"


class PartnerRecord(Document):
    """One partner.

    Attributes
    ----------
    name : str
    status : {"active", "revoked"}
    serial : int
        Of the bundle with which this entry last changed.
    node_key : str
        The newest key of its Flower node.
    request : EnrolmentRequest
        The last that was taken.
    """

    name: PartnerName
    status: Literal["active", "revoked"]
    serial: Annotated[int, Field(ge=1)]
    node_key: NodeText
    request: EnrolmentRequest

    @property
    def is_active(self) -> bool:
        """Whether it is in the roster."""
        return self.status == "active"


class Registry(Document):
    """All partners, by name.

    Attributes
    ----------
    serial : int
        Of the newest bundle; 0 before the first.
    partners : tuple of PartnerRecord
    """

    serial: Annotated[int, Field(ge=0)] = 0
    partners: tuple[PartnerRecord, ...] = ()

    @classmethod
    def open(cls, home: Path) -> Registry:
        """Read ``partners.json``.

        Raises
        ------
        DataError
            If it is not what `save` wrote.
        InvalidSignatureError
            If a request in it is not signed by its keys.
        """
        file = home / PARTNERS_FILE
        registry = parse(cls, read_bytes(file), str(file))
        for record in registry.partners:
            record.request.checked(f"{file}: {record.name}")
        return registry

    def save(self, home: Path) -> None:
        """Replace ``partners.json``."""
        write_bytes(home / PARTNERS_FILE, self.to_bytes())

    @property
    def active(self) -> tuple[PartnerRecord, ...]:
        """Those in the roster, sorted by name."""
        return tuple(record for record in self.partners if record.is_active)

    def admit(self, request: EnrolmentRequest, server_keys: tuple[str, ...]) -> Registry:
        """The registry with a partner enrolled, or with its keys changed; the same one if there is no news.

        Parameters
        ----------
        request : EnrolmentRequest
            Its signatures were checked.
        server_keys : tuple of str
            The coordinator's own.

        Raises
        ------
        ConfigError
            If the name was revoked, or a key of the request is somebody else's.
        InvalidSignatureError
            If the name is enrolled with other keys, none of which signed this request.
        ReplayError
            If a newer request of this partner was taken before.
        """
        known = next((record for record in self.partners if record.name == request.name), None)
        if known is not None and known.is_active and known.request.statement == request.statement:
            return self
        if known is not None:
            _check_succession(known, request)
        self._check_keys(request, server_keys)
        return self._with(request, "active")

    def revoke(self, name: str) -> Registry:
        """The registry with a partner revoked; its name and keys are not taken again.

        Raises
        ------
        ConfigError
            If there is no such active partner.
        """
        known = next((record for record in self.active if record.name == name), None)
        if known is None:
            raise ConfigError(f"Expected the name of an active partner, got {name!r}.")
        return self._with(known.request, "revoked")

    def _with(self, request: EnrolmentRequest, status: Literal["active", "revoked"]) -> Registry:
        record = PartnerRecord(
            name=request.name, status=status, serial=self.serial + 1, node_key=request.nodes[-1], request=request
        )
        others = [other for other in self.partners if other.name != request.name]
        return Registry(serial=self.serial, partners=tuple(sorted([*others, record], key=lambda each: each.name)))

    def _check_keys(self, request: EnrolmentRequest, server_keys: tuple[str, ...]) -> None:
        """Whoever holds the keys of two parties would count as two."""
        others = [record.request for record in self.partners if record.name != request.name]
        taken = {key for other in others for key in other.identities} | set(server_keys)
        nodes = {node for other in others for node in other.nodes}
        if taken & set(request.identities) or nodes & set(request.nodes):
            raise ConfigError(f"{request.name}: Expected keys of its own, got one that another party has or had.")


def _check_succession(known: PartnerRecord, request: EnrolmentRequest) -> None:
    """Only a partner itself may change its entry, and only forwards."""
    if not known.is_active:
        raise ConfigError(f"{request.name}: Expected a new name: this one was revoked.")
    if not set(known.request.identities) & set(request.identities):
        raise InvalidSignatureError(
            f"{request.name}: Expected the signature of an identity that is enrolled for this name, got others."
        )
    if request.serial <= known.request.serial:
        raise ReplayError(
            f"{request.name}: Expected a request with serial > {known.request.serial}, got {request.serial}."
        )
