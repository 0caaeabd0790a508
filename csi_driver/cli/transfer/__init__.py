"""`tidemark volume export` and `import`: a volume as a raw sparse image file."""
