"""The `tidemark` command: every subcommand but `agent` is an ordinary CSI client of the socket."""
