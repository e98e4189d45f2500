"""Tables, comparisons and plots, made from records alone."""
