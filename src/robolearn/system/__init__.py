"""Files, folders and the cluster's scheduler."""
