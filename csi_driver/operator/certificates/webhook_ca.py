"""The caBundle of the webhook configuration: whom the API server trusts when it calls the webhook."""

from base64 import b64decode, b64encode

from csi_driver.kube.client import Api, Object
from csi_driver.kube.resources import MUTATING_WEBHOOKS


def read_ca_bundle(configuration: Object | None) -> bytes | None:
    """Return the bundle of a MutatingWebhookConfiguration; empty if it has none, or several; None without a webhook."""
    if configuration is None or not configuration.get("webhooks"):
        return None
    bundles = {(webhook.get("clientConfig") or {}).get("caBundle") or "" for webhook in configuration["webhooks"]}
    try:
        return b64decode(bundles.pop(), validate=True) if len(bundles) == 1 else b""
    except ValueError:
        return b""


async def write_ca_bundle(api: Api, configuration: Object, bundle: bytes) -> None:
    """Write the bundle, and nothing else, under the version that was read. Raises Conflict."""
    text = b64encode(bundle).decode()
    # A merge patch replaces a list whole.
    webhooks = [
        {**webhook, "clientConfig": {**(webhook.get("clientConfig") or {}), "caBundle": text}}
        for webhook in configuration["webhooks"]
    ]
    metadata = {"resourceVersion": configuration["metadata"]["resourceVersion"]}
    patch = {"metadata": metadata, "webhooks": webhooks}
    await api.patch(MUTATING_WEBHOOKS, configuration["metadata"]["name"], patch)
