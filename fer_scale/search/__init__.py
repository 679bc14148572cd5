"""A search without Ray: its space, its study, one trial, and the record that it leaves."""
