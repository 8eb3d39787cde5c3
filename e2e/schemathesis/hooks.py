"""Access tokens, and what the document cannot say about valid orders, so that each of them must be
accepted: which products exist, that no two lines have the same product, and that no two orders of a
customer have the same key. Invalid orders stay as they are.
"""

import functools
import json
import urllib.parse
import urllib.request
import uuid

import schemathesis


@functools.cache
def token(url, customer):
    form = {"grant_type": "client_credentials", "client_id": customer}
    body = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(urllib.parse.urljoin(url, "/dev/token"), body, timeout=20) as response:
        return json.load(response)["access_token"]


@schemathesis.auth(refresh_interval=None)
class Customer:
    """The customer of all requests."""

    def get(self, case, context):
        return token(case.operation.base_url, "schemathesis")

    def set(self, case, data, context):
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.hook
def before_call(context, case, kwargs):
    create_order = case.operation.method == "post" and case.operation.path == "/api/v1/orders"
    if create_order and case.meta is not None and case.meta.generation.mode.is_positive:
        # Of the seed catalogue, which has 1000.
        for number, line in enumerate(case.body["items"], start=1):
            line["sku"] = f"SKU-{number:04}"
        # The same order with the same key is a repeated request, which must be accepted, too.
        order = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(case.body, sort_keys=True))
        key = case.headers["Idempotency-Key"]
        case.headers["Idempotency-Key"] = f"{order.hex}{key}"[:255].rstrip()
