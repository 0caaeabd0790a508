"""`tidemark doctor`: whether this machine has what Tidemark needs."""
