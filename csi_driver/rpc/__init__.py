"""The only code that knows gRPC and protobuf: it translates and does nothing else."""

import os

from csi_driver.environment import remove_ambient

# Read once, when grpc is first imported, which only modules below this one do. What somebody set for another program's gRPC
# would change how ours connects.
remove_ambient("GRPC_")
# Its fork handlers can deadlock a process that starts others while calls are running (grpc/grpc#22624); ours start by exec
# and need none of them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# Its C core writes lines of its own to standard error, also for what is no error, such as a client that goes away.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
