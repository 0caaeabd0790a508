"""`tidemark top`: space and activity of each volume."""
