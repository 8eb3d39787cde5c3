"""What the document cannot say about valid orders, so that each of them must be accepted: which
products exist, that no two lines have the same product, and that no two orders of a customer have
the same key. Invalid orders stay as they are.
"""

import json
import uuid

import schemathesis


@schemathesis.hook
def before_call(context, case, kwargs):
    create_order = case.operation.method == "post" and case.operation.path == "/api/v1/orders"
    if create_order and case.meta is not None and case.meta.generation.mode.is_positive:
        # Of the seed catalogue, which has 1000.
        for number, line in enumerate(case.body["items"], start=1):
            line["sku"] = f"SKU-{number:04}"
        # The same order with the same key is a repeated request, which must be accepted, too.
        order = json.dumps(case.body, sort_keys=True)
        case.headers["X-Customer-Id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, order))
