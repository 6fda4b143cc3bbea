"""The steps compiled for TPUs that are not here."""
