"""Download of the files of datasets."""
