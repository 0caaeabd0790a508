# The container image of Tidemark: one image for all roles, chosen by the first argument (`agent` by default).
#
# Built by any builder from the top of the tree; `make image` builds it where no registry can be reached.
# The agent mounts file systems and attaches loop devices, so its container is privileged and runs as root by nature. It
# needs the host's /dev (loop devices made later are invisible otherwise), and mounts that propagate to the host. The
# controller runs as any user. Neither writes to the image's own files: the root may be read-only, with something writable
# at /run (sockets, the controller's certificates) and /tmp.

ARG BASE=docker.io/library/debian:bookworm-slim

# The wheel, and a virtual environment with nothing in it but what runs: neither pip nor a compiler gets into the image, nor
# the bytecode of the Kubernetes client's generated models, which nothing here loads: 60 MB, and half a minute to make.
FROM ${BASE} AS build
ARG SOURCE_DATE_EPOCH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/build \
    && python3 -m venv --without-pip /opt/tidemark
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY csi_driver csi_driver
RUN /opt/build/bin/pip --no-cache-dir wheel --no-deps --wheel-dir /opt/build/wheels . \
    && /opt/build/bin/pip --no-cache-dir --python /opt/tidemark/bin/python install --no-compile \
        "$(echo /opt/build/wheels/*.whl)[controller]" \
    && /opt/tidemark/bin/python -m compileall -q --invalidation-mode unchecked-hash -x '/kubernetes/(aio/)?client/(api|models)/' /opt/tidemark/lib

FROM ${BASE}
ARG SOURCE_DATE_EPOCH
# e2fsprogs, xfsprogs: mkfs, grow and check. mount, util-linux: mount, losetup, blkid, nsenter. lvm2, thin-provisioning-tools:
# pools in volume groups on nodes that have no lvm of their own (where they have one, that is run).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends e2fsprogs lvm2 mount python3 thin-provisioning-tools util-linux xfsprogs \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/tidemark /opt/tidemark
# HOME: libraries ask for it, and a user that only a number stands for has none.
ENV HOME=/ \
    PATH=/opt/tidemark/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="Tidemark" \
      org.opencontainers.image.description="Elastic disks, copy-on-write snapshots and rollback for Kubernetes, on local storage: a CSI driver" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="The Tidemark authors"
ENTRYPOINT ["tidemark"]
CMD ["agent"]
