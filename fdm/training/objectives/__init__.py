"""What a training minimises: one file an objective."""
