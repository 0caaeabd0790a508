"""What a command prints: formats, tables, documents, and nothing that a terminal would obey."""
