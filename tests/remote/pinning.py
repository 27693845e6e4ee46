"""A host that sets a clock and is killed while it measures: address, key, artifact, root."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from eecompile.artifact import read_artifact
    from eecompile.board import Cluster, DvfsState
    from eecompile.runtime.sysfs_governor import open_governor
    from eecompile.targets.lowering.remote import RemoteDevice, read_address

    address, key, artifact, root = sys.argv[1:]
    device = RemoteDevice(
        read_artifact(artifact, must_run=False), read_address(address, key), threads=1, root=root
    )
    states = tuple(DvfsState("cpu", hz) for hz in (6e8, 9e8, 12e8))
    governor = open_governor((Cluster("cpu", "a core", (0,), states),), device.files)
    governor.set(states[1])
    assert governor.current == states[1], governor.reason
    print("set", flush=True)
    device.repeat(0, 60.0)
