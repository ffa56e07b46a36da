"""The service against its own OpenAPI document: whatever fits it, or nearly fits it, gets an answer that it names."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from service_setting import running
from starlette.testclient import TestClient

from client.data.ingest import RawData
from client.service.app import create_app
from client.service.service import Service, Source

if TYPE_CHECKING:
    from conftest import Done


@pytest.fixture(scope="module")
def service(whole: Done, shop_data: RawData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    source = Source(adapter=whole.out / "adapter")
    with running(tmp_path_factory.mktemp("fuzzed"), shop_data, source, StringIO()) as service:
        yield service


OPERATIONS = (
    "POST /v1/rank",
    "POST /v1/rank/batch",
    "POST /v1/events",
    "POST /v1/users/history",
    "POST /v1/users/forget",
    "POST /v1/items/availability",
    "POST /v1/users/interests",
    "POST /v1/users/similar",
    "POST /v1/items/similar",
    "POST /v1/audience",
)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fitting", [True, False])
def test_no_request_breaks_the_service(service: Service, operation: str, fitting: bool) -> None:
    """No 5xx, and no status, type or body that the document does not name."""
    document = schemathesis.openapi.from_asgi("/openapi.json", create_app(service))
    mode = GenerationMode.POSITIVE if fitting else GenerationMode.NEGATIVE
    path = operation.partition(" ")[2]

    @given(case=document[path]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=10, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def asks(case: Any) -> None:
        # A request may fit the document and name an item, or a release, that there is not.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    asks()


def test_the_document_tells_of_every_route(service: Service) -> None:
    paths = TestClient(create_app(service)).get("/openapi.json").json()["paths"]
    assert {operation.partition(" ")[2] for operation in OPERATIONS} | {"/v1/release", "/metrics"} <= set(paths)
    assert all("422" in one["responses"] for path in paths.values() for one in path.values())
