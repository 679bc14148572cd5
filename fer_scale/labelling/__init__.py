"""Labelling without Ray: what there is to label, in which units, what is done, and the work on one unit."""
