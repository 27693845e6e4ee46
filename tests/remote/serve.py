"""TVM's RPC server where a program cannot start itself again: under an emulator nobody registered.

The server starts its own Python once more. Arguments: a script that does so, then the server's.
"""

from __future__ import annotations

import runpy
import sys

if __name__ == "__main__":
    sys.executable = sys.argv.pop(1)
    sys.argv[0] = "rpc_server"
    runpy.run_module("tvm.exec.rpc_server", run_name="__main__")
