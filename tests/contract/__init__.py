"""What users and stored results rely on, frozen as golden files; see README.md in this folder."""
