"""Images: data sets, archives, downloads."""
