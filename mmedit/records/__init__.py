"""Records of edits as JSON lines: `schema` defines them, `store` reads and writes them."""
