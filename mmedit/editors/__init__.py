"""What all editing methods share."""
