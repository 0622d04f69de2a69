"""This study: its profiles, runs, measurements, claims, tables and figures."""
