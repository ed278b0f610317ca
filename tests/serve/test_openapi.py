"""The OpenAPI document is true: schemathesis makes requests from it, right ones and wrong ones, and checks answers."""

import pytest

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
schemathesis = pytest.importorskip("schemathesis", reason="needs the extra dev")

from hypothesis import HealthCheck, assume, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from lexlip.serve.app import create_app  # noqa: E402

PATHS = {
    "/search", "/explain", "/healthz", "/metrics", "/about", "/words", "/thumbnail/{id}", "/image/{id}", "/video/{id}",
}  # fmt: skip


@pytest.fixture
def described(index_folder, model, image):
    images = st.integers(0, 20).map(image)
    schemathesis.openapi.media_type("image/*", images)
    schemathesis.openapi.format("binary", images)
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(index_folder, model))


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_described(described, mode):
    """Right requests are served, wrong ones refused, and no answer is of a status or a form that is not described."""
    operations = [operation.ok() for operation in described.get_all_operations()]
    assert {operation.path for operation in operations} == PATHS
    statuses = set()
    for operation in operations:
        in_address = operation.path_parameters or operation.query  # whose wrong values are in test_page.py
        if operation.body or (in_address and mode is schemathesis.GenerationMode.POSITIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            def check(case):
                assume(not _lists_in_a_form(case))
                statuses.add(case.call_and_validate().status_code)

            check()
        elif mode is schemathesis.GenerationMode.POSITIVE:
            statuses.add(operation.Case().call_and_validate().status_code)
    assert statuses & ({200} if mode is schemathesis.GenerationMode.POSITIVE else {422})


def _lists_in_a_form(case):
    """A list of one value, or of none, is meant as a mistake; but a form's bytes are then those of the value itself."""
    form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    return form and any(isinstance(value, list) for value in case.body.values())
