"""From pictures and text to a data set folder: read, check, group, split, write."""
