"""One way to talk to the Kubernetes API, in a process of its own: `client_child VARIANT URL`. Prints its figures as JSON.

With a third argument, it watches claims instead, and says after how many seconds it noticed that nothing comes any more.
"""

import asyncio
import gc
import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

SNAPSHOTS = ("snapshot.storage.k8s.io", "v1", "volumesnapshots")
figures: dict[str, object] = {}
held: list[Any] = []


def rss() -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return round(int(found[1]) / 1024, 1) if found else 0.0


def weigh(what: str) -> None:
    gc.collect()
    figures[what] = rss()


def sync_models(url: str) -> None:
    """The synchronous client: claims as models, custom resources as dictionaries, one thread a watch."""
    import kubernetes

    weigh("imported_mib")
    api = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url))
    core, custom = kubernetes.client.CoreV1Api(api), kubernetes.client.CustomObjectsApi(api)
    began = time.perf_counter()
    held.append(core.list_persistent_volume_claim_for_all_namespaces())
    held.append(custom.list_cluster_custom_object(*SNAPSHOTS))
    figures["list_seconds"] = round(time.perf_counter() - began, 2)
    weigh("listed_mib")

    def watch(function: Any, *arguments: str) -> None:
        for event in kubernetes.watch.Watch().stream(function, *arguments):
            held.append(event)

    watched = [(core.list_persistent_volume_claim_for_all_namespaces,), (custom.list_cluster_custom_object, *SNAPSHOTS)]
    for function, *arguments in watched * 5:
        threading.Thread(target=watch, args=(function, *arguments), daemon=True).start()
    time.sleep(3)
    weigh("with_ten_watches_mib")


async def aio_models(url: str) -> None:
    """The asyncio client with its models."""
    import kubernetes.aio as kubernetes

    weigh("imported_mib")
    api = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url))
    core, custom = kubernetes.client.CoreV1Api(api), kubernetes.client.CustomObjectsApi(api)
    began = time.perf_counter()
    held.append(await core.list_persistent_volume_claim_for_all_namespaces())
    held.append(await custom.list_cluster_custom_object(*SNAPSHOTS))
    figures["list_seconds"] = round(time.perf_counter() - began, 2)
    weigh("listed_mib")

    async def watch(function: Any, *arguments: str) -> None:
        async for event in kubernetes.watch.Watch().stream(function, *arguments):
            held.append(event)

    watched = [(core.list_persistent_volume_claim_for_all_namespaces,), (custom.list_cluster_custom_object, *SNAPSHOTS)]
    held.extend(asyncio.create_task(watch(function, *arguments)) for function, *arguments in watched * 5)
    await asyncio.sleep(3)
    weigh("with_ten_watches_mib")


async def _start(informers: list[Any]) -> None:
    for informer in informers:
        informer.start()
    for informer in informers:
        await informer.wait_synced()


async def aio_json(url: str) -> None:
    """The asyncio client's transport with plain documents: csi_driver.kube, informers of whole objects."""
    from kubernetes.aio.client.configuration import Configuration

    from csi_driver.kube.client import Api
    from csi_driver.kube.informer import Informer
    from csi_driver.kube.resources import PVCS, SNAPSHOTS

    weigh("imported_mib")
    api = Api(Configuration(host=url))
    began = time.perf_counter()
    informers = [Informer(api, PVCS), Informer(api, SNAPSHOTS)]
    await _start(informers)
    figures["list_seconds"] = round(time.perf_counter() - began, 2)
    weigh("listed_mib")
    more = [Informer(api, kind, labels="none=here") for kind in (PVCS, SNAPSHOTS) for _ in range(4)]
    await _start(more)
    await asyncio.sleep(3)
    weigh("with_ten_watches_mib")
    for informer in (*informers, *more):
        await informer.stop()
    await api.close()


def quiet_sync(url: str) -> None:
    import kubernetes

    api = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url)))
    for _ in kubernetes.watch.Watch().stream(api.list_persistent_volume_claim_for_all_namespaces):
        pass


async def quiet_aio(url: str) -> None:
    import kubernetes.aio as kubernetes

    api = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url)))
    response = await api.list_persistent_volume_claim_for_all_namespaces_without_preload_content(watch=True)
    while await response.content.readline():
        pass


async def quiet_json(url: str) -> None:
    from kubernetes.aio.client.configuration import Configuration

    from csi_driver.kube.client import Api
    from csi_driver.kube.resources import PVCS

    async for _ in Api(Configuration(host=url)).watch(PVCS, "", seconds=3600):
        pass


VARIANTS = {"sync": (sync_models, quiet_sync), "aio": (aio_models, quiet_aio), "json": (aio_json, quiet_json)}


def main() -> None:
    variant, url, *quiet = sys.argv[1:]
    work = VARIANTS[variant][bool(quiet)]
    began = time.monotonic()
    try:
        if asyncio.iscoroutinefunction(work):
            asyncio.run(work(url))
        else:
            work(url)
    except Exception as error:
        if not quiet:
            raise
        figures["error"] = type(error).__name__
    if quiet:
        figures["ended_after_seconds"] = round(time.monotonic() - began)
    print(json.dumps(figures), flush=True)
    os._exit(0)  # threads that watch end with the process alone


if __name__ == "__main__":
    main()
