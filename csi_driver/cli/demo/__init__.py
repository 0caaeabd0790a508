"""`tidemark demo`: the whole product in half a minute, on a pool of its own, checked byte by byte, and gone afterwards."""
