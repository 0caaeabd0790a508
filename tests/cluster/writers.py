"""Scripts of pods that write numbered lines, each durable before it is acknowledged, and what they have acknowledged."""

from rig.kubectl import Kubectl

# A line is acknowledged (in the pod's /acknowledged) only when it is durable, and then the next one is written.
WRITE = """
dd if=/dev/urandom of=/disk/content bs=64k count=64 2>/dev/null
sha256sum /disk/content >/disk/sum
n=0
while :; do
    n=$((n + 1))
    echo $n >>/disk/lines
    sync -d /disk/lines
    echo $n >/acknowledged
done
"""
# The same on a raw device: line n is block n, and zeros follow it.
WRITE_BLOCKS = """
n=0
while :; do
    n=$((n + 1))
    echo $n | dd of=/dev/disk bs=4096 seek=$n count=1 conv=sync,notrunc,fsync 2>/dev/null
    echo $n >/acknowledged
done
"""


def acknowledged(kubectl: Kubectl, name: str) -> int:
    # Asked again while the writer is about to write it.
    return int(kubectl.sh(name, 'until n=$(cat /acknowledged) && [ -n "$n" ]; do :; done; echo $n'))
