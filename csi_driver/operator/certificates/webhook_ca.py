"""Whom the API server trusts when it calls our webhook: the caBundle in its configuration."""

from base64 import b64decode, b64encode

from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import MUTATING_WEBHOOKS


def read_ca_bundle(hook: Object | None) -> bytes | None:
    """The bundle of a MutatingWebhookConfiguration; empty where it has none, or several; None without any webhook."""
    if hook is None or not hook.get("webhooks"):
        return None
    bundles = {(one.get("clientConfig") or {}).get("caBundle") or "" for one in hook["webhooks"]}
    try:
        return b64decode(bundles.pop(), validate=True) if len(bundles) == 1 else b""
    except ValueError:
        return b""


async def write_ca_bundle(api: Api, hook: Object, bundle: bytes) -> None:
    """Write the bundle, and nothing else, under the version that was read. Raises Conflict."""
    text = b64encode(bundle).decode()
    # A merge patch replaces a list whole.
    hooks = [{**one, "clientConfig": {**(one.get("clientConfig") or {}), "caBundle": text}} for one in hook["webhooks"]]
    metadata = {"resourceVersion": hook["metadata"]["resourceVersion"]}
    await api.patch(MUTATING_WEBHOOKS, hook["metadata"]["name"], {"metadata": metadata, "webhooks": hooks})
