"""Downloading the files of datasets."""
