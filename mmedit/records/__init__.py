"""What was measured, as JSON lines: `schema` says what a record is, `store` reads and writes it."""
