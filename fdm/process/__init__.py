"""How noise is added: schedule, frameworks, momentum."""
