"""The metrics: tensors or strings in, one number per sequence out. Only a report averages."""
