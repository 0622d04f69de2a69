"""What makes the study repeatable: pipeline, notebooks, verification, plans."""
