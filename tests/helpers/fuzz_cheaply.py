"""Hooks of Schemathesis. Work costs time and its amount is no question of form: what the service allows is done in little."""

from typing import Any

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData

LITTLE = {"steps": 3, "candidates": 2, "n": 1, "max_redraws": 1, "duration_s": 0.5, "duration_seconds": 0.5}


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Numbers that the page allows become small ones; those that it forbids, and what is no number, stay."""
    if not isinstance(body, dict) or context.operation is None:
        return body
    content = context.operation.definition.raw["requestBody"]["content"]
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    schemas = context.operation.schema.raw_schema["components"]["schemas"]
    fields = schemas.get(reference.rpartition("/")[2], {}).get("properties", {})
    for name in LITTLE.keys() & body.keys() & fields.keys():
        bound = next(option["maximum"] for option in (fields[name], *fields[name].get("anyOf", ())) if "maximum" in option)
        if type(body[name]) in (int, float) and LITTLE[name] < body[name] <= bound:
            body[name] = LITTLE[name]
    return body


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """In a multipart body everything is text: a number in place of it is no violation."""
    return not (case.media_type == "multipart/form-data" and isinstance(failure, AcceptedNegativeData))
